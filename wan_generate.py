"""The command line of the Wan release: `python wan_generate.py --task t2v-1.3B --prompt "…"`.

Flags, defaults and exit statuses: docs/reference/cli.md.
"""

from ourvidz.cli.wan.command import main

if __name__ == "__main__":
    main()
