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
				--discard --snapshot -U --force-share --nbd --loops --allow --cache-size
				--stats --backend --pid-file -h --help" -- "$cur")
		else
			mapfile -t COMPREPLY < <(compgen -f -- "$cur")
		fi ;;
	esac
}

_byre()
{
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
	COMPREPLY=()
	if [ "$COMP_CWORD" = 1 ]; then
		mapfile -t COMPREPLY < <(compgen -W "serve help -h --help -V --version" -- "$cur")
		return
	fi
	case ${COMP_WORDS[1]} in
	serve) _byre_serve "$cur" "$prev" ;;
	help) mapfile -t COMPREPLY < <(compgen -W "serve" -- "$cur") ;;
	esac
}
complete -o filenames -F _byre byre
