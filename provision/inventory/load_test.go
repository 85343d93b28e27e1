package inventory

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// environment is what the inventories in testdata see. KEYS is a directory
// with private keys in the states they are found in.
func environment(t testing.TB) map[string]string {
	t.Helper()
	dir := t.TempDir()
	private := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	plain, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	encrypted, err := ssh.MarshalPrivateKeyWithPassphrase(private, "", []byte("sesame"))
	if err != nil {
		t.Fatal(err)
	}
	public, err := ssh.NewPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []struct {
		name string
		text []byte
		mode os.FileMode
	}{
		{"plain", pem.EncodeToMemory(plain), 0o600},
		{"plain.pub", ssh.MarshalAuthorizedKey(public), 0o600},
		{"encrypted", pem.EncodeToMemory(encrypted), 0o600},
		{"readable", pem.EncodeToMemory(plain), 0o644},
	} {
		if err := os.WriteFile(filepath.Join(dir, f.name), f.text, f.mode); err != nil {
			t.Fatal(err)
		}
	}
	return map[string]string{
		"KEYS":      dir,
		"HOME":      "/home/operator",
		"FIRST":     "10.240.0.10",
		"PREFIX":    "10.240.0",
		"PORT":      "2222",
		"EMPTY":     "",
		"INJECTION": "10.240.0.10\nssh: {user: eve}",
	}
}

func lookup(env map[string]string) Option {
	return LookupEnv(func(name string) (string, bool) {
		value, ok := env[name]
		return value, ok
	})
}

// neutral replaces what differs between machines.
func neutral(t *testing.T, env map[string]string, text string) []byte {
	t.Helper()
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	checkout := filepath.Dir(filepath.Dir(wd))
	return []byte(strings.NewReplacer(env["KEYS"], "$KEYS", wd, "$DIR", checkout, "$CHECKOUT").Replace(text))
}

func loadFile(t *testing.T, path string, opts ...Option) (*Cluster, []Warning, error) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return Load(path, f, opts...)
}

func TestInvalid(t *testing.T) {
	env := environment(t)
	for _, path := range glob(t, "testdata/invalid-*.yaml") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			cluster, _, err := loadFile(t, path, lookup(env))
			var problems Problems
			if !errors.As(err, &problems) || len(problems) == 0 {
				t.Fatalf("error %v, want problems", err)
			}
			if cluster != nil {
				t.Error("a cluster was returned as well")
			}
			for _, p := range problems {
				if p.File != path || p.Line < 1 || p.Column < 1 || p.Text == "" || p.Hint == "" {
					t.Errorf("incomplete problem: %+v", p)
				}
				if strings.Contains(p.String(), "hunter") || strings.ContainsAny(p.String(), "\n\r\x07") {
					t.Errorf("the problem repeats a secret or breaks its line: %q", p)
				}
			}
			compare(t, path, neutral(t, env, err.Error()+"\n"))
		})
	}
}

func TestValid(t *testing.T) {
	env := environment(t)
	for _, path := range append(glob(t, "testdata/valid-*.yaml"), glob(t, "../../examples/*.yaml")...) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			cluster, warnings, err := loadFile(t, path, lookup(env))
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			for _, w := range warnings {
				out.WriteString("warning: " + w.String() + "\n")
			}
			enc := json.NewEncoder(&out)
			enc.SetIndent("", "  ")
			if err := enc.Encode(cluster); err != nil {
				t.Fatal(err)
			}
			compare(t, filepath.Join("testdata", filepath.Base(path)), neutral(t, env, out.String()))
		})
	}
}

func glob(t testing.TB, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s names no file, error %v", pattern, err)
	}
	return paths
}

// compare checks a result against the golden file beside an inventory.
func compare(t *testing.T, path string, got []byte) {
	t.Helper()
	golden := strings.TrimSuffix(path, ".yaml") + ".golden"
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("differs from %s; -update rewrites it\n%s", golden, got)
	}
}

const small = "cluster: prod\ncontrollers:\n  - 10.240.0.10\n  - address: 10.240.0.11\n  - 10.240.0.12\n"

func TestByteOrderMarkAndCRLF(t *testing.T) {
	want, _, err := Load("a.yaml", strings.NewReader(small))
	if err != nil {
		t.Fatal(err)
	}
	text := "\uFEFF" + strings.ReplaceAll(small, "\n", "\r\n")
	got, _, err := Load("a.yaml", strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	wantJSON, _ := json.Marshal(want)
	gotJSON, _ := json.Marshal(got)
	if !bytes.Equal(gotJSON, wantJSON) {
		t.Errorf("got  %s\nwant %s", gotJSON, wantJSON)
	}
	_, _, err = Load("a.yaml", strings.NewReader(strings.Replace(text, "address", "adress", 1)))
	if want := "a.yaml:4:5: controllers[1].adress: "; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("error %v, want one at %s", err, want)
	}
}

func TestHugeFileIsRefusedFast(t *testing.T) {
	huge := io.MultiReader(strings.NewReader(small), strings.NewReader(strings.Repeat("  - 10.240.0.13\n", 10<<20/16)))
	start := time.Now()
	_, _, err := Load("huge.yaml", huge)
	if want := "huge.yaml:1:1: the file is larger than 1024 KiB; "; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("error %v, want %s", err, want)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestUnreadable(t *testing.T) {
	_, _, err := Load("a.yaml", io.MultiReader(strings.NewReader(small), failingReader{}))
	var problems Problems
	if !errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &problems) {
		t.Errorf("error %v, want the reader's own", err)
	}
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestEncryptedKeyIsFineWhenItCanBeOpened(t *testing.T) {
	env := environment(t)
	text := strings.NewReplacer("address: 10.240.0.11", "{address: 10.240.0.11, ssh: {identityFile: \"${KEYS}/encrypted\"}}").Replace(small)
	if _, _, err := Load("a.yaml", strings.NewReader(text), lookup(env), CanPrompt()); err != nil {
		t.Errorf("with somebody to ask: %v", err)
	}
	withAgent := maps.Clone(env)
	withAgent["SSH_AUTH_SOCK"] = "/run/agent"
	if _, _, err := Load("a.yaml", strings.NewReader(text), lookup(withAgent)); err != nil {
		t.Errorf("with an agent: %v", err)
	}
	if _, _, err := Load("a.yaml", strings.NewReader(text), lookup(env)); err == nil {
		t.Error("accepted with nobody to ask and no agent")
	}
}

func TestAllowLoopback(t *testing.T) {
	const practice = `
cluster: practice
controllers:
  - {address: 127.0.0.1, ssh: {port: 40001}, server: {clientPort: 41001, peerPort: 42001, metricsPort: 43001}}
  - {address: 127.0.0.1, ssh: {port: 40002}, server: {clientPort: 41002, peerPort: 42002, metricsPort: 43002}}
  - {address: 127.0.0.1, ssh: {port: 40003}, server: {clientPort: 41003, peerPort: 42003, metricsPort: 43003}}
`
	cluster, _, err := Load("a.yaml", strings.NewReader(practice), AllowLoopback())
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"https://127.0.0.1:41001", "https://127.0.0.1:41002", "https://127.0.0.1:41003"} {
		h := cluster.Hosts[i]
		if h.ClientURL() != want || len(h.ClientListenURLs()) != 1 || h.ClientListenURLs()[0] != want {
			t.Errorf("%s: clients at %s, listening at %v, want %s", h.Name, h.ClientURL(), h.ClientListenURLs(), want)
		}
	}
	if _, _, err := Load("a.yaml", strings.NewReader(practice)); err == nil {
		t.Error("accepted without the option")
	}
	clash := strings.Replace(practice, "peerPort: 42003", "peerPort: 41001", 1)
	_, _, err = Load("a.yaml", strings.NewReader(clash), AllowLoopback())
	if want := "controllers[2].server.peerPort: 41001 is used by controllers[0] on the same machine"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestRelativePaths(t *testing.T) {
	text := small + "pki: {dir: ../keys}\nssh: {identityFile: ~/.ssh/none}\n"
	_, _, err := Load("/inventories/prod/a.yaml", strings.NewReader(text), lookup(map[string]string{"HOME": "/home/operator"}))
	if want := "/home/operator/.ssh/none does not exist"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want %s", err, want)
	}
	cluster, _, err := Load("/inventories/prod/a.yaml", strings.NewReader(small+"pki: {dir: ../keys}\n"))
	if err != nil || cluster.PKI.Dir != "/inventories/keys" {
		t.Errorf("the directory is %v, error %v", cluster, err)
	}
}

// FuzzLoad checks that no text makes the loader panic, hang, or return
// neither a cluster nor an error, and that problems are well formed.
func FuzzLoad(f *testing.F) {
	for _, path := range append(glob(f, "testdata/*.yaml"), glob(f, "../../examples/*.yaml")...) {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	env := environment(f)
	f.Fuzz(func(t *testing.T, text []byte) {
		cluster, warnings, err := Load("fuzz.yaml", bytes.NewReader(text), lookup(env))
		if (cluster == nil) == (err == nil) {
			t.Fatalf("cluster %v, error %v", cluster, err)
		}
		var problems Problems
		if err != nil && (!errors.As(err, &problems) || len(problems) == 0) {
			t.Fatalf("error %v is not a list of problems", err)
		}
		for _, p := range append(warnings, problems...) {
			if p.Line < 1 || p.Column < 1 || strings.ContainsAny(p.String(), "\n\r\x1b") {
				t.Errorf("malformed problem %q", p)
			}
		}
		if cluster != nil && len(cluster.Hosts) == 0 {
			t.Error("a cluster without hosts was accepted")
		}
	})
}
