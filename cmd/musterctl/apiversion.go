package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/version"
	"go.etcd.io/etcd/pkg/v3/cobrautl"

	"muster/cmd/musterctl/ctlv2"
)

// apiVariable says which version of etcd's API the client speaks.
const apiVariable = "ETCDCTL_API"

// onlyV2 are the commands that version 3 does not have.
var onlyV2 = []string{"backup", "cluster-health", "exec-watch", "ls", "mk", "mkdir", "rm", "rmdir", "set", "setdir", "update", "updatedir"}

// v2CommandLine returns the arguments for version 2, and whether it is what args
// call for: because the environment says so, or because only version 2 has the
// command and the environment says nothing.
func v2CommandLine(api string, args []string) (_ []string, lenient, ok bool, err error) {
	switch api {
	case "2":
		return args, false, true, nil
	case "":
		if !slices.Contains(onlyV2, commandIn(args)) {
			return nil, false, false, nil
		}
		return inV2Terms(args), true, true, nil
	case "3":
		return nil, false, false, nil
	default:
		return nil, false, false, fmt.Errorf("unsupported API version %s", api)
	}
}

// switches are the global flags of both versions that have no value.
var switches = []string{"debug", "no-sync", "insecure-discovery", "help", "h", "version", "v", "hex", "insecure-transport", "insecure-skip-tls-verify"}

// commandIn is the first argument that is neither a flag nor a flag's value.
func commandIn(args []string) string {
	for i := 0; i < len(args); i++ {
		if !strings.HasPrefix(args[i], "-") {
			return args[i]
		}
		if name := strings.TrimLeft(args[i], "-"); !strings.Contains(name, "=") && !slices.Contains(switches, name) {
			i++
		}
	}
	return ""
}

// globals are the flags that both versions have, by version 3's name or version
// 2's, with that of version 2.
var globals = map[string]string{
	"endpoints": "endpoints",
	"cacert":    "ca-file", "ca-file": "ca-file",
	"cert": "cert-file", "cert-file": "cert-file",
	"key": "key-file", "key-file": "key-file",
	"user": "username", "username": "username",
}

// inV2Terms gives global flags the names that they have in version 2, and the
// place, which is in front of the command.
func inV2Terms(args []string) []string {
	var front, rest []string
	for i := 0; i < len(args); i++ {
		if args[i] == "--" {
			rest = append(rest, args[i:]...)
			break
		}
		name, value, joined := strings.Cut(strings.TrimLeft(args[i], "-"), "=")
		known, ok := globals[name]
		switch {
		case !ok || !strings.HasPrefix(args[i], "--"):
			rest = append(rest, args[i])
		case joined:
			front = append(front, "--"+known+"="+value)
		case i+1 < len(args):
			i++
			front = append(front, "--"+known+"="+args[i])
		default:
			rest = append(rest, args[i])
		}
	}
	return append(front, rest...)
}

// v2Names are the environment variables of version 2 for which version 3 has
// other names.
var v2Names = map[string]string{
	"ETCDCTL_CA_FILE":   "ETCDCTL_CACERT",
	"ETCDCTL_CERT_FILE": "ETCDCTL_CERT",
	"ETCDCTL_KEY_FILE":  "ETCDCTL_KEY",
	"ETCDCTL_USERNAME":  "ETCDCTL_USER",
}

// newV2 is the client of version 2. A lenient one takes version 3's names of
// environment variables, too.
func newV2(lenient bool, streams ctlv2.Streams) ctlv2.App {
	getenv := os.Getenv
	if lenient {
		getenv = func(name string) string {
			if value := os.Getenv(name); value != "" || v2Names[name] == "" {
				return value
			}
			return os.Getenv(v2Names[name])
		}
	}
	return ctlv2.App{Streams: streams, Name: "etcdctl", Version: version.Version, Getenv: getenv, Environ: os.Environ()}
}

// runV2 carries out a command line of version 2, until it is interrupted, and
// returns the exit code.
func runV2(app ctlv2.App, args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	return exitCode(app.Run(ctx, args), app.Err)
}

// exitCode says why a command of version 2 failed.
func exitCode(err error, errs io.Writer) int {
	if err == nil {
		return 0
	}
	if text := err.Error(); text != "" {
		fmt.Fprintln(errs, text)
	}
	var failure *ctlv2.Failure
	if errors.As(err, &failure) {
		return failure.Code
	}
	return cobrautl.ExitError
}
