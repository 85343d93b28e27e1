package desired

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"muster/pki"
	"muster/provision/inventory"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// fakeBundle holds texts that name the certificate they stand for, so that a
// golden file shows which one goes where.
func fakeBundle(hosts ...string) pki.Bundle {
	pair := func(name string) pki.Pair {
		return pki.Pair{Cert: []byte(name + " certificate\n"), Key: []byte(name + " key\n")}
	}
	b := pki.Bundle{
		CA: []byte("ca certificate\n"), Hosts: map[string]pki.HostPairs{},
		HealthcheckClient: pair("healthcheck"), APIServerEtcdClient: pair("apiserver"),
	}
	for _, h := range hosts {
		b.Hosts[h] = pki.HostPairs{Server: pair(h + " server"), Peer: pair(h + " peer")}
	}
	return b
}

func load(t *testing.T, text string, opts ...inventory.Option) *inventory.Cluster {
	t.Helper()
	c, _, err := inventory.Load("/inventories/test.yaml", strings.NewReader(text), opts...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const threeHosts = `
cluster: prod
controllers:
  - 10.240.0.10
  - 10.240.0.11
  - 10.240.0.12
`

func TestFor(t *testing.T) {
	for name, c := range map[string]struct {
		text  string
		hosts []string
	}{
		"three-hosts": {threeHosts, []string{"controller-0", "controller-1", "controller-2"}},
		"ipv6": {`
cluster: six
controllers:
  - 2001:DB8::10
`, []string{"controller-0"}},
		"names-and-inner-addresses": {`
cluster: named
controllers:
  - {name: alpha, address: 203.0.113.1, internalAddress: 10.0.0.1}
  - {name: beta, address: beta.example.com}
`, []string{"alpha", "beta"}},
		"ports-and-directory": {`
cluster: custom
token: very-own
controllers:
  - address: 10.0.0.1
    server: {metricsPort: 9381}
server:
  clientPort: 12379
  peerPort: 12380
  dataDir: /srv/muster
`, []string{"controller-0"}},
		"flags": {`
cluster: flags
controllers:
  - address: 10.0.0.1
    server: {flags: {election-timeout: "2000"}}
server:
  flags: {heartbeat-interval: 200, election-timeout: 1500, pre-vote: true, cors: "*", log-level: debug}
`, []string{"controller-0"}},
	} {
		t.Run(name, func(t *testing.T) {
			cluster := load(t, c.text)
			hosts, err := For(cluster, fakeBundle(c.hosts...))
			if err != nil {
				t.Fatal(err)
			}
			again, err := For(cluster, fakeBundle(c.hosts...))
			if err != nil || !reflect.DeepEqual(hosts, again) {
				t.Errorf("a second call differs, error %v", err)
			}
			var out bytes.Buffer
			for _, h := range hosts {
				describe(&out, h)
			}
			compare(t, filepath.Join("testdata", name+".golden"), out.Bytes())
			for _, h := range hosts {
				checkConsistent(t, h)
			}
		})
	}
}

// checkConsistent fails when a host contradicts itself.
func checkConsistent(t *testing.T, h Host) {
	t.Helper()
	var paths []string
	for _, f := range h.Files {
		paths = append(paths, f.Path)
		if secret := strings.HasSuffix(f.Path, ".key"); f.Secret != secret || secret && f.Mode&0o007 != 0 {
			t.Errorf("%s: %s is secret: %v, mode %o", h.Name, f.Path, f.Secret, f.Mode)
		}
	}
	for _, b := range h.Binaries {
		paths = append(paths, b.Path)
	}
	for _, u := range h.Units {
		for _, p := range append([]string{u.Path}, u.RestartOn...) {
			if !slices.Contains(paths, p) {
				t.Errorf("%s: %s refers to %s, which is not installed", h.Name, u.Name, p)
			}
		}
	}
	made := []string{"/usr/local/bin", "/etc", "/etc/systemd/system", "/var/lib", "/srv"}
	for _, d := range h.Directories {
		if !slices.Contains(made, path.Dir(d.Path)) {
			t.Errorf("%s: %s comes before its parent", h.Name, d.Path)
		}
		made = append(made, d.Path)
	}
	for _, p := range paths {
		if !slices.Contains(made, path.Dir(p)) {
			t.Errorf("%s: nothing makes the directory of %s", h.Name, p)
		}
	}
}

func describe(out *bytes.Buffer, h Host) {
	fmt.Fprintf(out, "host %s\n", h.Name)
	fmt.Fprintf(out, "account %+v\n", h.Account)
	fmt.Fprintf(out, "member %+v\n", h.Member)
	for _, d := range h.Directories {
		fmt.Fprintf(out, "directory %s %o %s:%s data=%v\n", d.Path, d.Mode, d.Owner, d.Group, d.Data)
	}
	for _, b := range h.Binaries {
		fmt.Fprintf(out, "binary %s %o %s:%s %s %s\n", b.Path, b.Mode, b.Owner, b.Group, b.Program, b.Source)
	}
	for _, l := range h.Links {
		fmt.Fprintf(out, "link %s -> %s\n", l.Path, l.Target)
	}
	for _, u := range h.Units {
		fmt.Fprintf(out, "unit %s enabled=%v\n", u.Name, u.Enabled)
		for _, p := range u.RestartOn {
			fmt.Fprintf(out, "  restart on %s\n", p)
		}
	}
	for _, f := range h.Files {
		fmt.Fprintf(out, "file %s %o %s:%s secret=%v\n", f.Path, f.Mode, f.Owner, f.Group, f.Secret)
		for line := range strings.Lines(string(f.Content)) {
			fmt.Fprintf(out, "  | %s", line)
		}
	}
}

func TestCertificates(t *testing.T) {
	spec := Certificates(load(t, `
cluster: prod
pki: {caLifetime: 20y, leafLifetime: 90d, keyAlgorithm: rsa-4096, extraSANs: [etcd.example.com, 192.0.2.1]}
controllers:
  - {name: alpha, address: 203.0.113.1, internalAddress: 10.0.0.1}
  - beta.example.com
  - 2001:db8::3
`))
	if spec.Algorithm != pki.RSA4096 || spec.CALifetime.Hours() != 20*365*24 || spec.LeafLifetime.Hours() != 90*24 {
		t.Errorf("%s, CA %s, leaf %s", spec.Algorithm, spec.CALifetime, spec.LeafLifetime)
	}
	want := []pki.Host{
		{Name: "alpha", SANs: []string{"10.0.0.1", "203.0.113.1", "etcd.example.com", "192.0.2.1"}},
		{Name: "controller-1", SANs: []string{"beta.example.com", "beta.example.com", "etcd.example.com", "192.0.2.1"}},
		{Name: "controller-2", SANs: []string{"2001:db8::3", "2001:db8::3", "etcd.example.com", "192.0.2.1"}},
	}
	if !reflect.DeepEqual(spec.Hosts, want) {
		t.Errorf("hosts %+v\nwant  %+v", spec.Hosts, want)
	}
}

func TestForWithoutCertificates(t *testing.T) {
	_, err := For(load(t, threeHosts), fakeBundle("controller-0", "controller-1"))
	if err == nil || !strings.Contains(err.Error(), "controller-2") {
		t.Errorf("error %v, want one that names controller-2", err)
	}
}

func compare(t *testing.T, golden string, got []byte) {
	t.Helper()
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
