package pki

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// TestKilledAnywhere ends a run after each step that reaches the disk. The
// next run must complete the directory with the CA that was there, if any,
// and keep what was whole.
func TestKilledAnywhere(t *testing.T) {
	spec := threeHosts()
	spec.Hosts = spec.Hosts[:2]
	var steps []string
	_, _, err := ensure(t.Context(), filepath.Join(t.TempDir(), "pki"), spec, time.Now, func(step string) error {
		steps = append(steps, step)
		return nil
	})
	must(t, err)
	if want := (2 + 2*(2*2+2)) * 3; len(steps) != want {
		t.Fatalf("%d steps, want %d: %v", len(steps), want, steps)
	}
	killed := errors.New("killed")
	for kill, step := range steps {
		t.Run(step, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "pki")
			n := 0
			_, _, err := ensure(t.Context(), dir, spec, time.Now, func(string) error {
				if n++; n > kill {
					return killed
				}
				return nil
			})
			if !errors.Is(err, killed) {
				t.Fatalf("error %v, want that of the kill", err)
			}
			keyBefore, keyErr := os.ReadFile(filepath.Join(dir, caKey))
			certBefore, certErr := os.ReadFile(filepath.Join(dir, caCert))
			bundle, _ := mustEnsure(t, dir, spec)
			keyAfter, err := os.ReadFile(filepath.Join(dir, caKey))
			must(t, err)
			if keyErr == nil && !bytes.Equal(keyBefore, keyAfter) {
				t.Error("the CA's key has changed")
			}
			if certErr == nil && !bytes.Equal(certBefore, bundle.CA) {
				t.Error("the CA's certificate has changed")
			}
			checkWhole(t, dir, bundle, spec)
			checkTidy(t, dir)
		})
	}
}

// checkWhole fails unless the bundle holds every leaf of the spec, signed by
// its CA.
func checkWhole(t *testing.T, dir string, bundle Bundle, spec Spec) {
	t.Helper()
	ca, err := parseAuthority(bundle.CA, nil)
	must(t, err)
	for _, want := range spec.leaves() {
		cert, err := os.ReadFile(filepath.Join(dir, want.certPath()))
		must(t, err)
		key, err := os.ReadFile(filepath.Join(dir, want.keyPath()))
		must(t, err)
		if reason := ca.misfit(Pair{cert, key}, want, spec.Algorithm, time.Now()); reason != "" {
			t.Errorf("%s: %s", want.path, reason)
		}
	}
}

// checkTidy fails if a temporary file is left.
func checkTidy(t *testing.T, dir string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if isTemporary(filepath.Base(path)) {
			t.Errorf("%s is left over", path)
		}
		return err
	}))
}

func TestConcurrentRunsMakeOneCA(t *testing.T) {
	dir, spec := filepath.Join(t.TempDir(), "pki"), threeHosts()
	var wg sync.WaitGroup
	bundles := make([]Bundle, 8)
	for i := range bundles {
		wg.Go(func() {
			var err error
			if bundles[i], _, err = Ensure(t.Context(), dir, spec); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i := range bundles {
		if !sameBundle(bundles[0], bundles[i]) {
			t.Errorf("runs 0 and %d ended with different certificates", i)
		}
	}
}

func TestLockNamesItsHolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	must(t, os.Mkdir(dir, 0o700))
	unlock, err := lock(t.Context(), dir)
	must(t, err)
	defer unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, _, err = Ensure(ctx, dir, threeHosts())
	wantError(t, err, "held by process ", "wait for that run")
}
