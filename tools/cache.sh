# SPDX-License-Identifier: MIT
# tools/cache.sh - sourced: CACHE is the folder for what is made or fetched once.
# shellcheck shell=bash
if [ -n "${XDG_CACHE_HOME:-}" ]; then
	CACHE=$XDG_CACHE_HOME/byre
else
	CACHE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.cache
fi
export CACHE
