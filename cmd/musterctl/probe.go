package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"muster/provision/probe"
)

// measuring returns the directory whose disk is measured, and whether argv calls
// for a measurement: "musterctl probe DIR", which muster doctor runs on a host.
// It is in this program because this one is on every host, whatever server is.
func measuring(argv []string) (dir string, ok bool) {
	name := filepath.Base(argv[0])
	if name == "etcdctl" || name == "etcdutl" || len(argv) != 3 || argv[1] != "probe" {
		return "", false
	}
	return argv[2], true
}

func measure(dir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := probe.Serve(ctx, os.Stdin, os.Stdout, probe.Near(dir)); err != nil {
		return fmt.Errorf("measure this host: %w", err)
	}
	return nil
}
