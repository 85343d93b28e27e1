package pki

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// listing is every file below a directory with its mode and time.
func listing(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		all = append(all, path+" "+info.Mode().String()+" "+info.ModTime().String())
		return err
	}))
	return all
}

func TestExamineSaysWhatEnsureDoes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	same := func(what string) Bundle {
		t.Helper()
		_, statErr := os.Stat(dir)
		var before []string
		if statErr == nil {
			before = listing(t, dir)
		}
		bundle, planned, err := Examine(dir, threeHosts())
		must(t, err)
		if _, err := os.Stat(dir); (err == nil) != (statErr == nil) || err == nil && !slices.Equal(before, listing(t, dir)) {
			t.Errorf("%s: Examine changed the directory", what)
		}
		made, changes := mustEnsure(t, dir, threeHosts())
		if !slices.Equal(planned, changes) {
			t.Errorf("%s: Examine says %v, Ensure made %v", what, planned, changes)
		}
		if len(changes) == 0 && !sameBundle(bundle, made) {
			t.Errorf("%s: the bundles differ", what)
		}
		return bundle
	}
	if b := same("no directory"); len(b.CA) > 0 || len(b.HealthcheckClient.Cert) > 0 {
		t.Errorf("certificates that do not exist: %+v", b)
	}
	same("everything there")
	must(t, os.Remove(filepath.Join(dir, "hosts/controller-1/peer.key")))
	must(t, os.Chmod(filepath.Join(dir, "hosts/controller-1/server.key"), 0o644))
	if b := same("a key is missing"); len(b.Hosts["controller-1"].Peer.Cert) > 0 || len(b.Hosts["controller-1"].Server.Cert) == 0 {
		t.Errorf("the pair whose key is missing is not the one that is empty")
	}
	must(t, os.Rename(filepath.Join(dir, caKey), filepath.Join(dir, "..", caKey)))
	if _, planned, err := Examine(dir, threeHosts()); err != nil || len(planned) > 0 {
		t.Errorf("without the CA's key: %v, error %v", planned, err)
	}
}
