package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"muster": main})
}

// TestScripts runs the command line as an operator would, errors and exit
// codes included. UPDATE_SCRIPTS=1 rewrites the expected output.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
		Cmds:          map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "poll": poll},
		Setup:         withCheckout,
	})
}

// withCheckout tells a script where the checkout is, from which muster makes
// the programs it installs, and lends it the caches that make this quick.
func withCheckout(env *testscript.Env) error {
	root, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	env.Setenv("CHECKOUT", root)
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	env.Setenv("XDG_CACHE_HOME", cache)
	for _, name := range []string{"GOPATH", "GOMODCACHE", "GOCACHE", "GOPROXY", "GOFLAGS"} {
		value, err := exec.Command("go", "env", name).Output()
		if err != nil {
			return err
		}
		env.Setenv(name, strings.TrimSpace(string(value)))
	}
	return nil
}

// poll waits until a file exists: poll FILE.
func poll(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: poll FILE")
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		_, err := os.Stat(ts.MkAbs(args[0]))
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("waited too long: %v", err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// exits runs a command and checks its exit code: exits CODE COMMAND ARGS...
// A command cannot tell 1 from 2 with testscript's own "! exec".
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND ARGS...")
	}
	ts.Check(ts.Exec("sh", append([]string{"-c", `code=$1; shift; "$@"; test $? -eq $code`, "exits"}, args...)...))
}

// TestRunIsSelfContained checks that run touches neither os.Args nor the
// process's streams, so that other programs and tests can call it.
func TestRunIsSelfContained(t *testing.T) {
	var out, errs writer
	if code := run(context.Background(), []string{"version"}, streams{in: nil, out: &out, err: &errs}); code != exitOK {
		t.Errorf("exit code %d, %s", code, errs)
	}
	if len(out) == 0 || len(errs) > 0 {
		t.Errorf("standard output %q, error output %q", out, errs)
	}
}

type writer []byte

func (w *writer) Write(p []byte) (int, error) { *w = append(*w, p...); return len(p), nil }
