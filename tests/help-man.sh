#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# suites: quick default long
# limit: 600
# What --help says, what the man pages say and what bash completes are the same: each command has
# a page and a completion, each option stands in all three, with the same argument, and in no
# place alone.
. "$(dirname "$0")/lib.sh"
need mandoc

man=$top/man

# options_of_help: "--name ARG" or "-n" a line, from --help on standard input.
options_of_help()
{
	sed -nE 's/^ +((-[A-Za-z], )?--.*)$/\1/p' | sed -E 's/   *.*//' |
		while IFS= read -r line; do
			argument=$(sed -nE 's/.*--[a-z-]+ ([A-Z]+)$/\1/p' <<<"$line")
			grep -oE -- '--?[A-Za-z][a-z-]*' <<<"$line" | while read -r option; do
				case $option in
				--*) echo "$option${argument:+ $argument}" ;;
				*) printf '%s\n' "$option" ;;
				esac
			done
		done | sort
}

# options_of_man FILE: the same, from its tagged lists.
options_of_man()
{
	sed -nE 's/^\.It (Fl .*)/\1/p' "$1" | tr ',' '\n' |
		sed -E 's/^ *Fl //; s/ +Ar / /; s/ *$//; s/^/-/' | sort
}

# same WHAT ONE OTHER
same()
{
	diff "$2" "$3" >"$W/diff" || { cat "$W/diff" >&2; fail "$1 differ (< $2, > $3)"; }
}

"$BYRE" --help >"$W/help" || fail "--help"
options_of_help <"$W/help" >"$W/byre.help"
options_of_man "$man/byre.1" >"$W/byre.man"
[ -s "$W/byre.help" ] || fail "no options found in --help"
same "byre --help and byre.1" "$W/byre.help" "$W/byre.man"

complete_words()
{
	bash -c '. "$1"; shift; COMP_WORDS=(byre "$@"); COMP_CWORD=$#
		compopt() { :; }; _byre; printf "%s\n" "${COMPREPLY[@]}"' - \
		"$top/completion/byre.bash" "$@"
}

complete_words - | sort >"$W/byre.completed"
sort "$W/byre.help" | diff - "$W/byre.completed" >&2 || fail "byre --help and completion differ"

sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p' "$W/help" >"$W/commands"
[ -s "$W/commands" ] || fail "no commands found in --help"
# shellcheck disable=SC2016  # nothing to expand
bash -n "$top/completion/byre.bash" || fail "the completion is not bash"

while read -r command; do
	page=$man/byre-$command.1
	[ -e "$page" ] || fail "no man page for 'byre $command'"
	grep -q "^\.It Cm $command\$" "$man/byre.1" || fail "byre.1 does not have '$command'"
	grep -q "byre-$command.1" "$man/meson.build" || fail "byre-$command.1 is not installed"
	[ "$(complete_words "$command")" = "$command" ] || fail "'$command' is not completed"
	summary=$(sed -nE "s/^  $command +//p" "$W/help")
	grep -qxF ".Nd $summary" "$page" || fail "byre-$command.1 does not say '$summary'"

	"$BYRE" "$command" --help >"$W/$command.text" || fail "$command --help"
	"$BYRE" help "$command" | diff "$W/$command.text" - || fail "help $command"
	options_of_help <"$W/$command.text" >"$W/$command.help"
	options_of_man "$page" >"$W/$command.man"
	[ -s "$W/$command.help" ] || fail "no options found in $command --help"
	same "byre $command --help and its page" "$W/$command.help" "$W/$command.man"
	complete_words "$command" - | sort >"$W/$command.completed"
	sed 's/ .*//' "$W/$command.help" | sort >"$W/$command.names"
	same "byre $command --help and completion" "$W/$command.names" "$W/$command.completed"

	# The synopsis: the same words in the same order.
	sed -nE 's/^usage: //p' "$W/$command.text" | tr -d '[].' | tr -s ' ' >"$W/$command.usage"
	sed -n '/^\.Sh SYNOPSIS/,/^\.Sh DESC/p' "$page" | sed -E '1d;$d' | tr '\n' ' ' |
		sed -E 's/\.(Nm|Op|Oo|Oc|Ar)//g; s/ (Ar|Ns)//g; s/\.//g' | tr -s ' ' |
		sed -E 's/^ //; s/ $//' >"$W/$command.synopsis"
	echo >>"$W/$command.synopsis"
	same "usage and synopsis of byre $command" "$W/$command.usage" "$W/$command.synopsis"
done <"$W/commands"

# The options of a format and their values; bash cuts words at "=", or does not.
"$BYRE" create -f qcow2 -o help x | sed -nE 's/^  ([a-z_0-9]+)=.*/\1=/p' | sort >"$W/keys"
[ -s "$W/keys" ] || fail "no options found in create -o help"
complete_words create -f qcow2 -o "" | grep "=" | sort >"$W/keys.completed"
same "the options of qcow2 and their completion" "$W/keys" "$W/keys.completed"
complete_words create -f qcow2 -o size=1M,prea >"$W/words"
complete_words create -f qcow2 -o preallocation=m >>"$W/words"
complete_words create -f qcow2 -o compat=v3,preallocation = m >>"$W/words"
complete_words create -f qcow2 -o compat = v3,prea >>"$W/words"
complete_words create -f qcow2 -o preallocation = | sort >>"$W/words"
printf '%s\n' size=1M,preallocation= preallocation=metadata metadata v3,preallocation= \
	falloc full metadata off >"$W/words.wanted"
same "wanted words and completed ones" "$W/words.wanted" "$W/words"

for page in "$man"/*.1; do
	name=$(basename "$page" .1)
	mandoc -T lint -W warning "$page" >"$W/lint" ||
		{ cat "$W/lint" >&2; fail "mandoc on $page"; }
	[ "$name" = byre ] || grep -qx "${name#byre-}" "$W/commands" || fail "$page has no command"
done
