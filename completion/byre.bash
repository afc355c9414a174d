# SPDX-License-Identifier: MIT
# completion/byre.bash - completion of byre's command line for bash.
# shellcheck shell=bash

_byre_serve()
{
	local cur=$1 prev=$2
	case $prev in
	-f | --format)
		mapfile -t COMPREPLY < <(compgen -W "qcow2 raw" -- "$cur") ;;
	--cache)
		mapfile -t COMPREPLY < <(compgen -W "writeback none writethrough directsync unsafe" \
			-- "$cur") ;;
	--discard)
		mapfile -t COMPREPLY < <(compgen -W "unmap ignore" -- "$cur") ;;
	--detect-zeroes)
		mapfile -t COMPREPLY < <(compgen -W "off on unmap" -- "$cur") ;;
	--backend)
		mapfile -t COMPREPLY < <(compgen -W "uring posix" -- "$cur") ;;
	--allow)
		mapfile -t COMPREPLY < <(compgen -d -- "$cur") ;;
	--nbd)
		compopt -o nospace
		mapfile -t COMPREPLY < <(compgen -W "unix: tcp:" -- "$cur") ;;
	--name | --snapshot | --loops | --cache-size)
		;;
	*)
		if [[ $cur == -* ]]; then
			mapfile -t COMPREPLY < <(compgen -W "-f --format --name -r --read-only --cache
				--discard --detect-zeroes --compress --snapshot -U --force-share --nbd
				--loops --allow --cache-size --stats --backend --pid-file -h --help" -- "$cur")
		else
			mapfile -t COMPREPLY < <(compgen -f -- "$cur")
		fi ;;
	esac
}

_byre_bench()
{
	local cur=$1 prev=$2
	case $prev in
	-f | --format)
		mapfile -t COMPREPLY < <(compgen -W "qcow2 raw" -- "$cur") ;;
	-t | --cache)
		mapfile -t COMPREPLY < <(compgen -W "writeback none writethrough directsync unsafe" \
			-- "$cur") ;;
	-i | --aio)
		mapfile -t COMPREPLY < <(compgen -W "threads native io_uring" -- "$cur") ;;
	-c | --count | -s | --buffer-size | -d | --depth | -o | --offset | -S | --step-size)
		;;
	--pattern | --flush-interval)
		;;
	*)
		if [[ $cur == -* ]]; then
			mapfile -t COMPREPLY < <(compgen -W "-h --help -q --quiet -f --format
				--image-opts -t --cache -c --count -s --buffer-size -d --depth -o --offset
				-S --step-size -i --aio -n --native -w --write --pattern --flush-interval
				--no-drain -U --force-share --untrusted" -- "$cur")
		else
			mapfile -t COMPREPLY < <(compgen -f -- "$cur")
		fi ;;
	esac
}

# The values that an option of the format may have.
_byre_format_values()
{
	case $1 in
	preallocation) echo off metadata falloc full ;;
	compat) echo 0.10 1.1 v2 v3 ;;
	compression_type) echo zlib zstd ;;
	backing_fmt) echo qcow2 raw ;;
	refcount_bits) echo 1 2 4 8 16 32 64 ;;
	cluster_size) echo 512 1k 2k 4k 8k 16k 32k 64k 128k 256k 512k 1M 2M ;;
	data_file_raw | extended_l2 | lazy_refcounts | nocow) echo on off ;;
	esac
}

# Completes the argument of -o, a list KEY=VALUE,...; bash makes words of it at each "=". Fails where
# the word is of something else.
_byre_format_options()
{
	local i=$COMP_CWORD text='' cur=${COMP_WORDS[COMP_CWORD]} item value
	until [[ ${COMP_WORDS[i - 1]} == @(-o|--options) ]]; do
		((i > 2)) && [[ ${COMP_WORDS[i]} == =* || ${COMP_WORDS[i - 1]} == *= ]] || return 1
		text=${COMP_WORDS[i]}$text
		((i--))
	done
	text=${COMP_WORDS[i]}$text
	item=${text##*,}
	[ "$cur" != = ] || cur=
	if [[ $item == *=* ]]; then
		value=${item#*=}
		case ${item%%=*} in
		backing_file | data_file)
			mapfile -t COMPREPLY < <(compgen -P "${cur%"$value"}" -f -- "$value") ;;
		*)
			mapfile -t COMPREPLY < <(compgen -P "${cur%"$value"}" \
				-W "$(_byre_format_values "${item%%=*}")" -- "$value") ;;
		esac
	else
		compopt -o nospace
		mapfile -t COMPREPLY < <(compgen -P "${cur%"$item"}" -W "backing_file= backing_fmt=
			cluster_size= compat= compression_type= data_file= data_file_raw=
			extended_l2= extent_size_hint= lazy_refcounts= nocow= preallocation=
			refcount_bits= size= help" -- "$item")
	fi
}

# What most image tools have in common: the options' arguments.
_byre_image()
{
	local cur=$1 prev=$2 options=$3
	! _byre_format_options || return 0
	case $prev in
	-f | --format | --a-format | -F | --b-format | --backing-format | -O | --target-format)
		mapfile -t COMPREPLY < <(compgen -W "qcow2 raw" -- "$cur") ;;
	-T | --cache)
		mapfile -t COMPREPLY < <(compgen -W "writeback none writethrough directsync unsafe" \
			-- "$cur") ;;
	--output)
		mapfile -t COMPREPLY < <(compgen -W "human json" -- "$cur") ;;
	-l | --snapshot | --max-length | --start-offset | --size | --object)
		;;
	*)
		if [[ $cur == -* ]]; then
			mapfile -t COMPREPLY < <(compgen -W "$options" -- "$cur")
		else
			mapfile -t COMPREPLY < <(compgen -f -- "$cur")
		fi ;;
	esac
}

_byre_map()
{
	_byre_image "$@" "-h --help -f --format --image-opts -s --start-offset -l --max-length
		--output -U --force-share --object --untrusted"
}

_byre_compare()
{
	_byre_image "$@" "-h --help -f --a-format -F --b-format --image-opts -s --strict -T --cache
		-U --force-share -p --progress -q --quiet --object --untrusted"
}

_byre_measure()
{
	_byre_image "$@" "-h --help -O --target-format -o --options --size -f --format
		--image-opts -l --snapshot --output -U --force-share --object --untrusted"
}

_byre_check()
{
	if [[ $2 == -r || $2 == --repair ]]; then
		mapfile -t COMPREPLY < <(compgen -W "leaks all" -- "$1")
		return
	fi
	_byre_image "$@" "-h --help -q --quiet -f --format --image-opts -T --cache -U
		--force-share --output -r --repair --object --untrusted"
}

_byre_create()
{
	_byre_image "$@" "-h --help -q --quiet -f --format -o --options -b --backing -F
		--backing-format -u --backing-unsafe --object"
}

_byre_info()
{
	_byre_image "$@" "-h --help -f --format --image-opts -b --backing-chain -U --force-share
		--output --object --untrusted"
}

_byre()
{
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
	local commands="bench check compare create info map measure serve"
	COMPREPLY=()
	if [ "$COMP_CWORD" = 1 ]; then
		mapfile -t COMPREPLY < <(compgen -W "$commands help -h --help -V --version" \
			-- "$cur")
		return
	fi
	case ${COMP_WORDS[1]} in
	bench) _byre_bench "$cur" "$prev" ;;
	check) _byre_check "$cur" "$prev" ;;
	map) _byre_map "$cur" "$prev" ;;
	compare) _byre_compare "$cur" "$prev" ;;
	create) _byre_create "$cur" "$prev" ;;
	info) _byre_info "$cur" "$prev" ;;
	measure) _byre_measure "$cur" "$prev" ;;
	serve) _byre_serve "$cur" "$prev" ;;
	help) mapfile -t COMPREPLY < <(compgen -W "$commands" -- "$cur") ;;
	esac
}
complete -o filenames -F _byre byre
