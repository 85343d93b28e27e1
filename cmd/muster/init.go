package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"muster/provision/inventory"
	"muster/templates"
)

func newInitCommand(a *app) *cobra.Command {
	var cluster, identityFile string
	cmd := &cobra.Command{
		Use:   "init [user@]address[:port]...",
		Short: "write a starter inventory",
		Long: `init writes an inventory of the given machines to the file that --file names,
or to standard output for "--file -". It never replaces a file and contacts no
host. An IPv6 address with a port is written in brackets.`,
		Example: `  muster init root@10.240.0.10 root@10.240.0.11 root@10.240.0.12
  muster init -f lab.yaml --cluster lab admin@[2001:db8::10]:2222`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return &usageError{errors.New("no machine is named"), "write " + cmd.UseLine()}
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error { return a.init(cluster, identityFile, args) },
	}
	cmd.Flags().StringVar(&cluster, "cluster", "prod", "name of the cluster")
	cmd.Flags().StringVar(&identityFile, "identity-file", "", "private key to log in with")
	return cmd
}

func (a *app) init(cluster, identityFile string, args []string) error {
	starter := templates.Inventory{Cluster: cluster, IdentityFile: identityFile}
	for _, arg := range args {
		c, err := parseMachine(arg)
		if err != nil {
			return &usageError{fmt.Errorf("%q is not a machine: %w", arg, err), "write [user@]address[:port], with an IPv6 address in brackets when a port follows"}
		}
		starter.Controllers = append(starter.Controllers, c)
	}
	shareLogin(&starter)
	text, err := starter.Render()
	if err != nil {
		return err
	}
	if err := checkStarter(text); err != nil {
		return err
	}
	file, err := a.oneFile()
	if err != nil {
		return err
	}
	if file == standardInput {
		_, err := a.out.Write(text)
		return err
	}
	if err := writeNew(file, text); err != nil {
		return err
	}
	fmt.Fprintf(a.err, "wrote %s\nnext: muster validate -f %[1]s, then muster apply -f %[1]s\n", file)
	return nil
}

// checkStarter refuses arguments that make an inventory the other commands
// would refuse.
func checkStarter(text []byte) error {
	_, _, err := inventory.Load(defaultInventory, bytes.NewReader(text), inventory.CanPrompt())
	var problems inventory.Problems
	if !errors.As(err, &problems) {
		return err
	}
	// Lines and columns are those of a file that will not be written.
	first := problems[0]
	return &usageError{fmt.Errorf("the arguments make no usable inventory: %s: %s", first.Field, first.Text), first.Hint}
}

// parseMachine reads [user@]address[:port].
func parseMachine(s string) (templates.Controller, error) {
	var c templates.Controller
	if at := strings.LastIndexByte(s, '@'); at >= 0 {
		c.User, s = s[:at], s[at+1:]
		if c.User == "" {
			return c, errors.New("the user before @ is empty")
		}
	}
	c.Address = strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
	if _, err := netip.ParseAddr(c.Address); err == nil {
		return c, nil
	}
	host, port, err := net.SplitHostPort(s)
	if hasPort := err == nil && !strings.HasPrefix(port, "/"); !hasPort {
		c.Address = s // whatever it is, the inventory's rules will judge it
		return c, nil
	}
	c.Address = host
	c.Port, err = strconv.Atoi(port)
	if err != nil || c.Port < 1 || c.Port > 65535 {
		return c, fmt.Errorf("the port %q is not a number from 1 to 65535", port)
	}
	return c, nil
}

// shareLogin moves a user or port that all hosts have in common to the top.
func shareLogin(i *templates.Inventory) {
	user, port := i.Controllers[0].User, i.Controllers[0].Port
	for _, c := range i.Controllers {
		if c.User != user {
			user = ""
		}
		if c.Port != port {
			port = 0
		}
	}
	i.User, i.Port = user, port
	for n := range i.Controllers {
		if user != "" {
			i.Controllers[n].User = ""
		}
		if port != 0 {
			i.Controllers[n].Port = 0
		}
	}
}

// writeNew creates the file. It fails when there already is one.
func writeNew(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return &usageError{fmt.Errorf("%s already exists", path), "name another file with --file, or remove this one yourself"}
	}
	if err != nil {
		return &usageError{fmt.Errorf("create the inventory: %w", err), "name a file that can be written with --file"}
	}
	_, err = f.Write(text)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("write the inventory %s: %w", path, err)
	}
	return nil
}
