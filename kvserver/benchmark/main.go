// Command benchmark measures musterd and etcd side by side on this machine, in
// turn and under the same load, and prints one table of ratios. The load for
// single requests is etcd's own benchmark tool.
//
// It is a module of its own so that nothing it needs reaches the product.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// options is what the command line sets.
type options struct {
	sizes   string
	rounds  int
	puts    int
	ranges  int
	single  int
	keys    int
	workDir string
	musterd string
}

func main() {
	var o options
	flag.StringVar(&o.sizes, "members", "1,3", "cluster sizes, comma-separated")
	flag.IntVar(&o.rounds, "rounds", 1, "measure this many times in turn and print the medians")
	flag.IntVar(&o.single, "puts-alone", 2500, "puts of the one client")
	flag.IntVar(&o.puts, "puts", 60_000, "puts of 1000 clients")
	flag.IntVar(&o.ranges, "ranges", 100_000, "linearizable ranges of 1000 clients")
	flag.IntVar(&o.keys, "keys", 1_000_000, "keys of 256 bytes for the measurements of a large store; 0 leaves them out")
	flag.StringVar(&o.workDir, "dir", "", "directory for data and binaries (default a temporary one, removed at the end)")
	flag.StringVar(&o.musterd, "musterd", "", "musterd binary (default: built from this checkout)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		stop()
		os.Exit(1) //nolint:forbidigo // main
	}
}

func run(ctx context.Context, o options) error {
	dir := o.workDir
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "muster-benchmark-"); err != nil {
			return fmt.Errorf("make a working directory: %w", err)
		}
		defer os.RemoveAll(dir)
	}
	tools, err := build(ctx, dir, o.musterd)
	if err != nil {
		return err
	}
	var sizes []int
	for _, text := range strings.Split(o.sizes, ",") {
		var size int
		if _, err := fmt.Sscan(text, &size); err != nil || size < 1 || size > 9 {
			return fmt.Errorf("-members %q: write sizes from 1 to 9, as in 1,3", o.sizes)
		}
		sizes = append(sizes, size)
	}
	begun := time.Now()
	results := table{rows: new([]*row)}
	for round := range o.rounds {
		for _, size := range sizes {
			for _, kind := range tools.inTurn(round) {
				fmt.Fprintf(os.Stderr, "%6.1fs  round %d  %d member(s)  %s\n", time.Since(begun).Seconds(), round+1, size, kind.name)
				if err := measureRequests(ctx, tools, kind, size, o, results); err != nil {
					return fmt.Errorf("%s, %d member(s): %w", kind.name, size, err)
				}
			}
		}
		for _, kind := range tools.inTurn(round) {
			if o.keys == 0 {
				break
			}
			fmt.Fprintf(os.Stderr, "%6.1fs  round %d  %d keys  %s\n", time.Since(begun).Seconds(), round+1, o.keys, kind.name)
			if err := measureLarge(ctx, tools, kind, o, results); err != nil {
				return fmt.Errorf("%s, %d keys: %w", kind.name, o.keys, err)
			}
		}
	}
	fmt.Fprintf(os.Stderr, "%6.1fs  done\n", time.Since(begun).Seconds())
	return results.print(os.Stdout)
}

// kind is one of the two servers.
type kind struct{ name, binary string }

// tools are the programs of a run, built from the versions that go.mod pins.
type tools struct {
	etcd, muster kind
	benchmark    string
	dir          string
}

// inTurn alternates who is first: a machine gets warm, and disks fill up.
func (t tools) inTurn(round int) []kind {
	if round%2 == 1 {
		return []kind{t.muster, t.etcd}
	}
	return []kind{t.etcd, t.muster}
}

func build(ctx context.Context, dir, musterd string) (tools, error) {
	t := tools{dir: dir, benchmark: filepath.Join(dir, "benchmark")}
	t.etcd = kind{"etcd", filepath.Join(dir, "etcd")}
	t.muster = kind{"musterd", filepath.Join(dir, "musterd")}
	type target struct{ output, from, pkg string }
	targets := []target{
		{t.benchmark, ".", "go.etcd.io/etcd/v3/tools/benchmark"},
		{t.etcd.binary, ".", "go.etcd.io/etcd/server/v3"},
	}
	if musterd != "" {
		t.muster.binary = musterd
	} else {
		targets = append(targets, target{t.muster.binary, "../..", "./cmd/musterd"})
	}
	for _, target := range targets {
		command := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", target.output, target.pkg)
		command.Dir = target.from
		command.Env = append(os.Environ(), "CGO_ENABLED=0")
		if output, err := command.CombinedOutput(); err != nil {
			return t, fmt.Errorf("build %s (run this in kvserver/benchmark of a checkout): %w\n%s", target.pkg, err, output)
		}
	}
	return t, nil
}

var errMemberDied = errors.New("a member died during the measurement")
