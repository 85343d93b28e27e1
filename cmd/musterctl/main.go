// Command musterctl is etcd's own command line, built from etcd's packages. With
// ETCDCTL_API=2 it speaks version 2 of etcd's API.
//
// It answers to four names. As etcdctl it is upstream's client, as etcdutl
// upstream's offline tool, and as sh a shell for the image that holds nothing
// else. As musterctl it is the client, and "musterctl utl"
// is the offline tool; "musterctl backup" saves a checked snapshot of the cluster
// into a directory, and "musterctl storage" makes data fit for an older etcd.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/etcdctl/v3/ctlv3"
	"go.etcd.io/etcd/pkg/v3/cobrautl"

	"muster/cmd/musterctl/ctlv2"
)

func main() {
	if filepath.Base(os.Args[0]) == "sh" {
		os.Exit(runShell(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	if args, ok := offline(os.Args); ok {
		command := newOfflineCommand()
		command.SetArgs(args)
		if err := command.Execute(); err != nil {
			os.Exit(cobrautl.ExitError) // the command has printed the error
		}
		return
	}
	api := os.Getenv(apiVariable)
	if own := ownCommandFor(os.Args, api); own != nil {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
		err := own.ExecuteContext(ctx)
		stop()
		if err != nil {
			fmt.Fprintln(os.Stderr, "error:", err)
			os.Exit(cobrautl.ExitError)
		}
		return
	}
	args, lenient, ok, err := v2CommandLine(api, os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(cobrautl.ExitError)
	}
	if ok {
		os.Exit(runV2(newV2(lenient, ctlv2.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}), args))
	}
	if err := presentCertificates(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(cobrautl.ExitError)
	}
	ctlv3.MustStart() // reads os.Args, and exits when it fails
}

// ownCommandFor returns the command of muster's own that argv calls for; nil for
// none. They are in this program because it is on every host, whatever server
// is there.
func ownCommandFor(argv []string, api string) *cobra.Command {
	for name, construct := range map[string]func() *cobra.Command{
		"backup":  func() *cobra.Command { return newBackupCommand(os.Stdout) },
		"probe":   newProbeCommand,
		"storage": newStorageCommand,
	} {
		if api == "2" && name == "backup" {
			continue // etcd's own
		}
		if args, ok := ownCommand(argv, name); ok {
			cmd := construct()
			cmd.SetArgs(args)
			return cmd
		}
	}
	return nil
}

// offline returns the arguments for the offline tool, and whether argv, with
// the program's name in front, calls for it.
func offline(argv []string) ([]string, bool) {
	switch name := filepath.Base(argv[0]); {
	case name == "etcdutl":
		return argv[1:], true
	case name != "etcdctl" && len(argv) > 1 && argv[1] == "utl":
		return argv[2:], true
	default:
		return nil, false
	}
}
