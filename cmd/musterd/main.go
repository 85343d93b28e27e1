// Command musterd is a replicated key-value server with etcd's API and flags.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"go.etcd.io/etcd/api/v3/version"
	"google.golang.org/grpc/grpclog"

	"muster/kvserver"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(exitCode(err))
	}
}

// usageError is a mistake on the command line; it exits with 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func exitCode(err error) int {
	if errors.As(err, &usageError{}) {
		return 2
	}
	return 1
}

func run(ctx context.Context, args, environment []string, stdout, stderr io.Writer) (err error) {
	options, err := parse(args, environment)
	switch {
	case errors.Is(err, flag.ErrHelp):
		printHelp(stdout)
		return nil
	case err != nil:
		return usageError{err}
	case options.version:
		printVersion(stdout)
		return nil
	}
	logger, closeLog, err := options.log.open(stdout, stderr)
	if err != nil {
		return usageError{err}
	}
	defer closeLog() //nolint:errcheck // there is nowhere left to say it
	defer func() {
		if err != nil && !options.log.onStderr() { // where main prints it
			logger.Error("stopped", "error", err)
		}
	}()
	options.config.Logger = logger
	for _, note := range options.notes {
		logger.Warn(note)
	}
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, slogWriter{logger}))
	if options.config.Inherited, err = activation.Listeners(); err != nil {
		return fmt.Errorf("take over the sockets that systemd has opened: %w", err)
	}
	server, err := kvserver.StartContext(ctx, options.config)
	if err != nil {
		return err
	}
	go func() {
		select {
		case <-server.Ready():
			logger.Info("ready to serve client requests", "name", options.config.Name, "client-urls", options.config.AdvertiseClientURLs)
			if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
				logger.Warn("could not tell systemd that the member is ready", "error", err)
			}
		case <-ctx.Done():
		}
	}()
	err = server.Wait(ctx)
	logger.Info("stopping", "error", err)
	if _, notifyErr := daemon.SdNotify(false, daemon.SdNotifyStopping); notifyErr != nil {
		logger.Warn("could not tell systemd that the member is stopping", "error", notifyErr)
	}
	if errors.Is(err, kvserver.ErrRemoved) {
		return errors.Join(err, server.Close()) // nothing is wrong with the disk
	}
	if err != nil {
		return err // what the disk holds is in doubt: nothing is flushed or handed on
	}
	return server.Close()
}

// slogWriter puts gRPC's errors, which it prints as lines of its own form, into
// the log.
type slogWriter struct{ logger *slog.Logger }

func (w slogWriter) Write(line []byte) (int, error) {
	w.logger.Warn("grpc: " + strings.TrimSpace(string(line)))
	return len(line), nil
}

// printVersion begins as etcd's does: tools grep it.
func printVersion(w io.Writer) {
	build, revision := "devel", "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		build = info.Main.Version
		for _, setting := range info.Settings {
			if setting.Key == "vcs.revision" {
				revision = setting.Value
			}
		}
	}
	fmt.Fprintf(w, "etcd Version: %s\nGit SHA: %s\nGo Version: %s\nGo OS/Arch: %s/%s\nmusterd Version: %s\n",
		version.Version, revision, runtime.Version(), runtime.GOOS, runtime.GOARCH, build)
}
