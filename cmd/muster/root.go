package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"muster/provision/remote"
)

// streams are the three standard streams of a process.
type streams struct {
	in  io.Reader
	out io.Writer
	err io.Writer
}

// run executes one command line and returns its exit code. Errors have been
// printed when it returns.
func run(ctx context.Context, args []string, std streams) int {
	a := &app{streams: std}
	defer a.close()
	root := newRootCommand(a)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if errors.Is(err, errDrift) {
		a.events.end(nil)
		return exitDrift
	}
	a.events.end(err)
	code := a.report(err)
	if code == exitUsage && cmd.Name() == planName { // whose 2 means something else
		code = exitFailed
	}
	return code
}

// subcommands lists the constructor of every subcommand, in the order of the
// help text.
func subcommands() []func(*app) *cobra.Command {
	return []func(*app) *cobra.Command{
		newInitCommand,
		newValidateCommand,
		newPlanCommand,
		newApplyCommand,
		newAdoptCommand,
		newReplaceCommand,
		newStatusCommand,
		newDoctorCommand,
		newLogsCommand,
		newExecCommand,
		newBackupCommand,
		newRestoreCommand,
		newCertsCommand,
		newResetCommand,
		newKubeadmCommand,
		newImageCommand,
		newDemoCommand,
		newPracticeCommand,
		newManCommand,
		newVersionCommand,
	}
}

func newRootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "muster",
		Short: "stand up an etcd-compatible cluster on a list of machines",
		Long: `muster reads a short YAML inventory of controllers, reaches every one of them
over SSH, installs the key-value server with its own CA and certificates, starts
it, and calls the roll: it is done when every member answers.

  muster init root@10.240.0.10 root@10.240.0.11 root@10.240.0.12
  muster apply

exit codes: 0 ok, 1 failed, 2 usage or invalid inventory; plan: 2 changes to make`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return a.start(cmd.CommandPath()) },
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)

	flags := root.PersistentFlags()
	flags.StringArrayVarP(&a.files, "file", "f", []string{defaultInventory}, `inventory to read, or a directory of them; "-" is standard input; may be repeated`)
	flags.StringSliceVar(&a.selected, "cluster", nil, "names of the clusters to work on, when the inventory has several; all when left out")
	flags.StringVarP(&a.output, "output", "o", outputText, `form of the output: "text" or "json"`)
	flags.BoolVar(&a.json, "json", false, "short for --output json")
	flags.StringVar(&a.logLevel, "log-level", "warn", "least severe messages to print: debug, info, warn or error")
	flags.StringVar(&a.logFile, "log-file", "", "append every message, debug included, to this file as JSON lines")
	flags.StringVar(&a.eventsFile, "events", "", `append what happens to this file as JSON lines; "-" is standard output`)
	flags.StringVar(&a.caIdentity, "ca-identity", "", "file of the age identity that opens the CA's key; MUSTER_CA_IDENTITY does the same")
	flags.DurationVar(&a.connectTimeout, "connect-timeout", remote.DefaultConnectTimeout, "how long a host may take to answer when it is connected to")
	flags.BoolVar(&a.noColor, "no-color", false, "print without colors; NO_COLOR in the environment does the same")

	for _, construct := range subcommands() {
		root.AddCommand(construct(a))
	}
	return root
}

// noArguments is cobra.NoArgs with a text that says what to do.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return fmt.Errorf("%s takes no arguments, got %q", cmd.CommandPath(), args[0])
}
