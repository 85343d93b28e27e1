package main

import (
	"time"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/etcdutl/v3/etcdutl"
)

// flockTimeout is how long upstream's etcdutl waits for a database that
// another process has open.
const flockTimeout = 10 * time.Second

// newOfflineCommand puts upstream's etcdutl together. Its commands are a
// library; the root above them is not, so its flags are repeated here with
// upstream's names, defaults and words.
func newOfflineCommand() *cobra.Command {
	root := &cobra.Command{
		Use:        "etcdutl",
		Short:      "An administrative command line tool for etcd3.",
		SuggestFor: []string{"etcdutl"},
	}
	flags := root.PersistentFlags()
	flags.DurationVar(&etcdutl.FlockTimeout, "timeout", flockTimeout,
		"time to wait to obtain a file lock on db file, 0 to block indefinitely")
	flags.StringVarP(&etcdutl.OutputFormat, "write-out", "w", "simple",
		"set the output format (fields, json, protobuf, simple, table)")
	root.AddCommand(
		etcdutl.NewDefragCommand(),
		etcdutl.NewSnapshotCommand(),
		etcdutl.NewHashKVCommand(),
		etcdutl.NewVersionCommand(),
		etcdutl.NewCompletionCommand(),
		etcdutl.NewMigrateCommand(),
	)
	root.SetHelpTemplate("{{.UsageString}}")
	return root
}
