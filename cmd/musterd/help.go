package main

import (
	"fmt"
	"io"
)

const usage = `musterd: a replicated key-value server with etcd's API and flags

Usage:

  musterd [flags]
    Start a member.

  musterd --version
    Print the version.

  musterd --config-file FILE
    Read the settings from FILE, in the format of etcd's configuration file.
    Other flags and environment variables are ignored then.

Every flag is also an environment variable: --data-dir is ETCD_DATA_DIR.
`

// printHelp lists the table in etcd's form.
func printHelp(w io.Writer) {
	table := newOptions().table()
	fmt.Fprint(w, usage)
	for _, g := range table {
		fmt.Fprintf(w, "\n%s:\n", g.title)
		for _, r := range g.rows {
			fmt.Fprintf(w, "  --%s '%s'\n    %s\n", r.name, r.value, r.usage)
			switch {
			case r.noEffect != "":
				fmt.Fprintf(w, "    Accepted without effect: %s.\n", r.noEffect)
			case r.only != "":
				fmt.Fprintf(w, "    Only the default is accepted: %s.\n", r.only)
			}
			for _, old := range r.old {
				fmt.Fprintf(w, "    Also --%s.\n", old)
			}
		}
	}
}
