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
				--discard --detect-zeroes --snapshot -U --force-share --nbd --loops
				--allow --cache-size --stats --backend --pid-file -h --help" -- "$cur")
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

# What most image tools have in common: the options' arguments.
_byre_image()
{
	local cur=$1 prev=$2 options=$3
	case $prev in
	-f | --format | --a-format | -F | --b-format | --backing-format | -O | --target-format)
		mapfile -t COMPREPLY < <(compgen -W "qcow2 raw" -- "$cur") ;;
	-T | --cache)
		mapfile -t COMPREPLY < <(compgen -W "writeback none writethrough directsync unsafe" \
			-- "$cur") ;;
	--output)
		mapfile -t COMPREPLY < <(compgen -W "human json" -- "$cur") ;;
	-l | --snapshot | --max-length | --start-offset | --size | -o | --options | --object)
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
