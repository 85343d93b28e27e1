// Package ctlv2 is etcdctl as it is with ETCDCTL_API=2: the commands of version
// 2, with the flags, the output and the exit codes of etcdctl 3.4, over etcd's
// own client of that version.
package ctlv2

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/urfave/cli"
	"go.etcd.io/etcd/client/v2"
)

// Exit codes, which scripts rely on.
const (
	exitError         = 1
	exitBadArgs       = 1
	exitBadConnection = 2
	exitServerError   = 4
	exitUnhealthy     = 5
)

// Failure is why a command failed.
type Failure struct {
	// Code is the process's exit code.
	Code int
	err  error
}

// Error is empty when there is nothing more to say.
func (f *Failure) Error() string {
	if f.err == nil {
		return ""
	}
	return f.err.Error()
}

func (f *Failure) Unwrap() error { return f.err }

// Streams are what commands read and write.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// App is the program.
type App struct {
	Streams
	// Name and Version are what it says of itself.
	Name, Version string
	// Getenv reads an environment variable; Environ is all of them.
	Getenv  func(string) string
	Environ []string
}

// Run carries out a command line without the program's name until ctx ends,
// which is how watches end. The error is a *Failure, or one of the command
// line's; the latter has code 1.
func (a App) Run(ctx context.Context, args []string) error {
	printVersion()
	app := cli.NewApp()
	app.Name, app.HelpName = a.Name, a.Name
	app.Version = a.Version
	app.Usage = "A simple command line client for etcd."
	app.Writer, app.ErrWriter = a.Out, a.Err
	app.Flags = []cli.Flag{
		cli.BoolFlag{Name: "debug", Usage: "output cURL commands which can be used to reproduce the request"},
		cli.BoolFlag{Name: "no-sync", Usage: "don't synchronize cluster information before sending request"},
		cli.StringFlag{Name: "output, o", Value: "simple", Usage: "output response in the given format (`simple`, `extended` or `json`)"},
		cli.StringFlag{Name: "discovery-srv, D", Usage: "domain name to query for SRV records describing cluster endpoints"},
		cli.BoolFlag{Name: "insecure-discovery", Usage: "accept insecure SRV records describing cluster endpoints"},
		cli.StringFlag{Name: "peers, C", Usage: `DEPRECATED - "--endpoints" should be used instead`},
		cli.StringFlag{Name: "endpoint", Usage: `DEPRECATED - "--endpoints" should be used instead`},
		cli.StringFlag{Name: "endpoints", Usage: `a comma-delimited list of machine addresses in the cluster (default: "http://127.0.0.1:2379,http://127.0.0.1:4001")`},
		cli.StringFlag{Name: "cert-file", Usage: "identify HTTPS client using this SSL certificate file"},
		cli.StringFlag{Name: "key-file", Usage: "identify HTTPS client using this SSL key file"},
		cli.StringFlag{Name: "ca-file", Usage: "verify certificates of HTTPS-enabled servers using this CA bundle"},
		cli.StringFlag{Name: "username, u", Usage: "provide username[:password] and prompt if password is not supplied."},
		cli.DurationFlag{Name: "timeout", Value: 2 * time.Second, Usage: "connection timeout per request"},
		cli.DurationFlag{Name: "total-timeout", Value: 5 * time.Second, Usage: "timeout for the command execution (except watch)"},
	}
	s := &session{App: a, ctx: ctx}
	app.Commands = []cli.Command{
		s.backupCommand(), s.healthCommand(),
		s.mkCommand(), s.mkdirCommand(), s.rmCommand(), s.rmdirCommand(),
		s.getCommand(), s.lsCommand(), s.setCommand(), s.setdirCommand(), s.updateCommand(), s.updatedirCommand(),
		s.watchCommand(), s.execWatchCommand(),
		s.memberCommands(), s.userCommands(), s.roleCommands(), s.authCommands(),
	}
	return app.Run(append([]string{a.Name}, args...))
}

// printVersion sets what is printed of the version, for all apps.
var printVersion = sync.OnceFunc(func() {
	cli.VersionPrinter = func(c *cli.Context) {
		fmt.Fprintf(c.App.Writer, "%s version: %v\nAPI version: 2\n", c.App.Name, c.App.Version)
	}
})

// session is one command line that is carried out.
type session struct {
	App
	ctx context.Context
}

func (s *session) say(format string, args ...any) { fmt.Fprintf(s.Out, format, args...) }

// total bounds a command that is no watch.
func (s *session) total(c *cli.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(s.ctx, c.GlobalDuration("total-timeout"))
}

// plain fails with a message and nothing else.
func plain(format string, args ...any) error {
	return &Failure{exitError, fmt.Errorf(format, args...)}
}

// failed fails with a reason in the form that the commands on keys have.
func (s *session) failed(c *cli.Context, code int, err error) error {
	var refused client.Error
	if c.GlobalString("output") == "json" && asClientError(err, &refused) {
		text, jsonErr := json.Marshal(refused)
		if jsonErr != nil {
			return jsonErr
		}
		return &Failure{code, errors.New(string(text))}
	}
	var cluster *client.ClusterError
	if errors.As(err, &cluster) {
		return &Failure{code, fmt.Errorf("Error:  %w\n%s", err, cluster.Detail())} //nolint:staticcheck // etcdctl's words
	}
	return &Failure{code, fmt.Errorf("Error:  %w", err)} //nolint:staticcheck // etcdctl's words
}

// asClientError tells whether it was the server that refused.
func asClientError(err error, into *client.Error) bool {
	var pointer *client.Error
	if errors.As(err, &pointer) {
		*into = *pointer
		return true
	}
	return false
}

func (s *session) badArgs(c *cli.Context, text string) error {
	return s.failed(c, exitBadArgs, errors.New(text))
}

// print writes the answer of a command on keys.
func (s *session) print(c *cli.Context, resp *client.Response) error {
	deleted := resp.Action == "delete"
	switch format := c.GlobalString("output"); format {
	case "simple":
		if deleted {
			s.say("PrevNode.Value: %s\n", resp.PrevNode.Value)
		} else {
			s.say("%s\n", resp.Node.Value)
		}
	case "extended":
		s.say("Key: %s\nCreated-Index: %d\nModified-Index: %d\n", resp.Node.Key, resp.Node.CreatedIndex, resp.Node.ModifiedIndex)
		if resp.PrevNode != nil {
			s.say("PrevNode.Value: %s\n", resp.PrevNode.Value)
		}
		s.say("TTL: %d\nIndex: %d\n", resp.Node.TTL, resp.Index)
		if !deleted {
			s.say("\n%s\n", resp.Node.Value)
		}
	case "json":
		text, err := json.Marshal(resp)
		if err != nil {
			return err
		}
		s.say("%s\n", text)
	default:
		fmt.Fprintln(s.Err, "Unsupported output format:", format)
	}
	return nil
}

// value is an argument, or what is on standard input when there is none.
func (s *session) value(c *cli.Context, i int) (string, error) {
	if i < c.NArg() {
		return c.Args().Get(i), nil
	}
	text, err := io.ReadAll(s.In)
	if err != nil || len(text) == 0 {
		return "", s.badArgs(c, "value required")
	}
	return string(text), nil
}

func seconds(n int) time.Duration { return time.Duration(n) * time.Second }

// unsigned is a number of a flag; a negative one wraps, as in etcdctl.
func unsigned(c *cli.Context, name string) uint64 {
	return uint64(c.Int(name)) //nolint:gosec // see above
}

func quoted(text string) string { return strconv.Quote(text) }
