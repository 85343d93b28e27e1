package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/term"
	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

// Exit statuses of a shell, POSIX sh, EXIT STATUS.
const (
	shellUsage  = 2
	shellNoFile = 127
)

// runShell is sh for the server's image, which holds no other program: as kubectl
// exec POD -- sh -c '...' calls it. It returns the exit status.
func runShell(ctx context.Context, args []string, in *os.File, out, diagnostics io.Writer) int {
	flags := pflag.NewFlagSet("sh", pflag.ContinueOnError)
	flags.SetInterspersed(false)
	flags.SetOutput(diagnostics)
	inline := flags.BoolP("command", "c", false, "read the commands from the first argument")
	errexit := flags.BoolP("errexit", "e", false, "exit when a command fails")
	unset := flags.BoolP("nounset", "u", false, "using a variable that is not set is an error")
	trace := flags.BoolP("xtrace", "x", false, "print each command")
	interactive := flags.BoolP("interactive", "i", false, "prompt for commands")
	flags.BoolP("login", "l", false, "without effect: there is no profile to read")
	if err := flags.Parse(args); err != nil {
		return shellUsage
	}
	script, name, rest := io.Reader(in), "sh", flags.Args()
	switch {
	case *inline && len(rest) == 0:
		fmt.Fprintln(diagnostics, "sh: -c wants the commands as an argument")
		return shellUsage
	case *inline:
		script, rest = strings.NewReader(rest[0]), rest[1:]
		if len(rest) > 0 {
			name, rest = rest[0], rest[1:]
		}
	case len(rest) > 0:
		file, err := os.Open(rest[0])
		if err != nil {
			fmt.Fprintln(diagnostics, "sh:", err)
			return shellNoFile
		}
		defer file.Close() //nolint:errcheck // only read
		script, name, rest = file, rest[0], rest[1:]
	default:
		*interactive = *interactive || term.IsTerminal(int(in.Fd())) //nolint:gosec // a file descriptor is small
	}
	var options []string
	for option, on := range map[string]bool{"-e": *errexit, "-u": *unset, "-x": *trace} {
		if on {
			options = append(options, option)
		}
	}
	runner, err := interp.New(
		interp.Interactive(*interactive), interp.StdIO(in, out, diagnostics),
		interp.Params(append(append(options, "--"), rest...)...),
	)
	if err == nil && *interactive {
		err = converse(ctx, runner, script, out)
	} else if err == nil {
		err = runScript(ctx, runner, script, name)
	}
	var status interp.ExitStatus
	var parse syntax.ParseError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	case errors.As(err, &parse):
		fmt.Fprintln(diagnostics, "sh:", err)
		return shellUsage
	default:
		fmt.Fprintln(diagnostics, "sh:", err)
		return 1
	}
}

func runScript(ctx context.Context, runner *interp.Runner, script io.Reader, name string) error {
	program, err := syntax.NewParser().Parse(script, name)
	if err != nil {
		return err
	}
	return runner.Run(ctx, program)
}

// converse reads commands from a terminal.
func converse(ctx context.Context, runner *interp.Runner, in io.Reader, out io.Writer) error {
	prompt := func(text string) { fmt.Fprint(out, text) }
	prompt("# ")
	parser := syntax.NewParser()
	for statements, err := range parser.InteractiveSeq(in) {
		if err != nil {
			return err
		}
		if parser.Incomplete() {
			prompt("> ")
			continue
		}
		for _, statement := range statements {
			if err := runner.Run(ctx, statement); runner.Exited() {
				return err
			}
		}
		prompt("# ")
	}
	return nil
}
