package plan

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"muster/pki"
	"muster/provision/desired"
	"muster/provision/inventory"
	"muster/provision/observed"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// wanted is what a host of a cluster of one should have.
func wanted(t *testing.T, extra string) desired.Host {
	t.Helper()
	cluster, _, err := inventory.Load("inventory.yaml", strings.NewReader("cluster: prod\ncontrollers: [10.0.0.1]\n"+extra))
	if err != nil {
		t.Fatal(err)
	}
	bundle, _, err := pki.Ensure(t.Context(), t.TempDir()+"/pki", desired.Certificates(cluster))
	if err != nil {
		t.Fatal(err)
	}
	hosts, err := desired.For(cluster, bundle)
	if err != nil {
		t.Fatal(err)
	}
	return hosts[0]
}

var programs = map[string]Content{
	"/usr/local/bin/musterd":   {SHA256: strings.Repeat("d0", 32), Size: 30 << 20},
	"/usr/local/bin/musterctl": {SHA256: strings.Repeat("c0", 32), Size: 20 << 20},
}

var record = observed.Record{Cluster: "prod", Token: "t", Member: "controller-0", DataDir: "/var/lib/muster", CA: "ca"}

// has is a host that has everything it should.
func has(want desired.Host) observed.Facts {
	f := observed.Facts{HasUser: true, HasGroup: true, Data: observed.DataFilled, Files: map[string]observed.FileFact{}, Record: record}
	f.Record.ClusterID, f.Record.MemberID = "c1", "m1"
	f.Unit = observed.UnitFact{Loaded: true, Enabled: true, Active: "active"}
	for _, d := range want.Directories {
		f.Files[d.Path] = observed.FileFact{Type: "directory", Mode: d.Mode, Owner: d.Owner, Group: d.Group}
	}
	for _, b := range want.Binaries {
		f.Files[b.Path] = observed.FileFact{Mode: b.Mode, Owner: b.Owner, Group: b.Group, SHA256: programs[b.Path].SHA256}
	}
	for _, l := range want.Links {
		f.Files[l.Path] = observed.FileFact{Target: l.Target}
	}
	for _, file := range want.Files {
		sum := sha256.Sum256(file.Content)
		f.Files[file.Path] = observed.FileFact{Mode: file.Mode, Owner: file.Owner, Group: file.Group, SHA256: hex.EncodeToString(sum[:]), Text: string(file.Content)}
	}
	return f
}

func TestCompare(t *testing.T) {
	want := wanted(t, "")
	const unit = "/etc/systemd/system/musterd.service"
	edit := func(f observed.Facts, path string, change func(*observed.FileFact)) {
		file := f.Files[path]
		change(&file)
		f.Files[path] = file
	}
	for _, test := range []struct {
		name   string
		change func(*observed.Facts)
		plan   []string
	}{
		{"nothing", func(*observed.Facts) {}, nil},
		{"no account", func(f *observed.Facts) { f.HasUser, f.HasGroup = false, false }, []string{"create account group muster", "create account user muster"}},
		{"a directory's mode", func(f *observed.Facts) {
			edit(*f, "/var/lib/muster", func(f *observed.FileFact) { f.Mode = 0o755 })
		}, []string{"update directory /var/lib/muster (mode: 0755 -> 0700)"}},
		{"a file where a directory belongs", func(f *observed.Facts) {
			edit(*f, "/etc/muster", func(f *observed.FileFact) { f.Type = "regular file" })
		}, []string{"update directory /etc/muster (type: regular file -> directory)"}},
		{"no program", func(f *observed.Facts) { delete(f.Files, "/usr/local/bin/musterctl") },
			[]string{"create program /usr/local/bin/musterctl (sha256: c0c0c0c0c0c0, 20.0 MiB)"}},
		{"another program", func(f *observed.Facts) {
			edit(*f, "/usr/local/bin/musterd", func(f *observed.FileFact) { f.SHA256 = "ffffffffffffffff" })
		}, []string{"update program /usr/local/bin/musterd (sha256: ffffffffffff -> d0d0d0d0d0d0)", "restart service musterd.service"}},
		{"a program's owner", func(f *observed.Facts) {
			edit(*f, "/usr/local/bin/musterd", func(f *observed.FileFact) { f.Owner = "bob" })
		}, []string{"update program /usr/local/bin/musterd (owner: bob:root -> root:root)"}},
		{"a stranger's link", func(f *observed.Facts) {
			edit(*f, "/usr/local/bin/etcdctl", func(f *observed.FileFact) { f.Target = "/opt/etcdctl" })
		}, []string{"note link /usr/local/bin/etcdctl (it exists and is not muster's; it is left alone)"}},
		{"another key", func(f *observed.Facts) {
			edit(*f, "/etc/muster/pki/peer.key", func(f *observed.FileFact) { f.SHA256 = "ff" })
		}, []string{"update file /etc/muster/pki/peer.key", "restart service musterd.service"}},
		{"a key that only root's client uses", func(f *observed.Facts) {
			edit(*f, "/etc/muster/pki/healthcheck-client.key", func(f *observed.FileFact) { f.SHA256 = "ff" })
		}, []string{"update file /etc/muster/pki/healthcheck-client.key"}},
		{"flags", func(f *observed.Facts) {
			edit(*f, unit, func(f *observed.FileFact) {
				f.SHA256 = "ff"
				f.Text = strings.Replace(f.Text, "--listen-metrics-urls http://127.0.0.1:2381", "--heartbeat-interval=150 --listen-metrics-urls http://127.0.0.1:9", 1)
				f.Text = strings.Replace(f.Text, "--client-cert-auth", "", 1)
				f.Text = strings.Replace(f.Text, "RestartSec=2s", "RestartSec=9s", 1)
			})
		}, []string{"update unit " + unit + " (--client-cert-auth: not set -> set; --listen-metrics-urls: http://127.0.0.1:9 -> http://127.0.0.1:2381; --heartbeat-interval: 150 -> not set; Service/RestartSec: 9s -> 2s)", "restart service musterd.service"}},
		{"a comment", func(f *observed.Facts) {
			edit(*f, unit, func(f *observed.FileFact) { f.SHA256, f.Text = "ff", "# hello\n"+f.Text })
		}, []string{"update unit " + unit + " (only its comments or its layout differ)", "restart service musterd.service"}},
		{"not enabled, not running", func(f *observed.Facts) { f.Unit = observed.UnitFact{} },
			[]string{"update unit musterd.service (starts at boot: no -> yes)", "start service musterd.service"}},
		{"a restart that is due", func(f *observed.Facts) { f.RestartPending = true }, []string{"restart service musterd.service"}},
		{"no record", func(f *observed.Facts) { f.Record = observed.Record{} }, []string{
			"create record /etc/muster/cluster.json (a member of cluster prod)", "update record /etc/muster/cluster.json (with the IDs of the cluster and the member)",
		}},
		{"another CA in the record", func(f *observed.Facts) { f.Record.CA = "old" }, []string{"update record /etc/muster/cluster.json"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			have := has(want)
			test.change(&have)
			var got []string
			for _, c := range (Host{Want: want, Have: have, Programs: programs, Record: record}).Compare() {
				got = append(got, c.sentence())
			}
			if !slices.Equal(got, test.plan) {
				t.Errorf("plan\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(test.plan, "\n"))
			}
		})
	}
}

func TestCertificateDetails(t *testing.T) {
	one := wanted(t, "")
	other := wanted(t, "pki: {extraSANs: [etcd.example.com], leafLifetime: 30d}")
	content := func(h desired.Host) string {
		i := slices.IndexFunc(h.Files, func(f desired.File) bool { return strings.HasSuffix(f.Path, "/server.crt") })
		return string(h.Files[i].Content)
	}
	details := strings.Join(certificateDetails(content(one), content(other)), "\n")
	for _, want := range []string{"names: 10.0.0.1 ", " -> 10.0.0.1 127.0.0.1 ::1 controller-0 etcd.example.com localhost", "issuer: etcd-ca (key ", "expires: "} {
		if !strings.Contains(details, want) {
			t.Errorf("the details lack %q:\n%s", want, details)
		}
	}
	for _, test := range []struct{ have, want, details string }{
		{"", "", "a new one"},
		{content(one), "", "a new one replaces the one until "},
		{"nonsense", content(one), "controller-0 (10.0.0.1 127.0.0.1 ::1 controller-0 localhost), by etcd-ca, until "},
	} {
		if got := strings.Join(certificateDetails(test.have, test.want), ";"); !strings.HasPrefix(got, test.details) {
			t.Errorf("details %q, want %q", got, test.details)
		}
	}
}

func TestText(t *testing.T) {
	p := &Plan{Cluster: "prod", Hosts: []string{"a", "b", "c"}, Changes: []Change{
		{Action: Create, Kind: Certificate, Name: "hosts/c/server.crt", Details: []string{"missing"}},
		{Host: "a", Action: Update, Kind: Unit, Name: "/etc/systemd/system/musterd.service", Details: []string{"--heartbeat-interval: 100 -> 150"}},
		{Host: "a", Action: Restart, Kind: Service, Name: "musterd.service"},
		{Host: "b", Action: Update, Kind: Unit, Name: "/etc/systemd/system/musterd.service", Details: []string{"--heartbeat-interval: 100 -> 150"}},
		{Host: "b", Action: Restart, Kind: Service, Name: "musterd.service"},
		{Host: "c", Action: Note, Kind: Link, Name: "/usr/local/bin/etcdctl", Details: []string{"it exists and is not muster's; it is left alone"}},
		{Action: Add, Kind: Member, Name: "c", Details: []string{"as a learner, with the peer URL https://c:2380"}},
		{Action: Remove, Kind: Member, Name: "d", Details: []string{"4 at https://d:2380, which is not in the inventory"}},
	}}
	var got bytes.Buffer
	for _, colors := range []bool{false, true} {
		if err := p.WriteText(&got, colors); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&got, p.Summary())
	}
	const golden = "testdata/text.golden"
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("differs from %s; -update rewrites it\n%s", golden, &got)
	}
}

func TestDifference(t *testing.T) {
	one := &Plan{Changes: []Change{{Host: "a", Action: Create, Kind: Link, Name: "x"}}}
	none := &Plan{}
	if d := Difference(one, one); d != "" || one.Fingerprint() != (&Plan{Changes: slices.Clone(one.Changes)}).Fingerprint() {
		t.Errorf("a plan differs from itself: %q", d)
	}
	for _, test := range []struct {
		approved, now *Plan
		want          string
	}{{none, one, "now planned, and not shown before: a: create link x"}, {one, none, "no longer needed: a: create link x"}} {
		if d := Difference(test.approved, test.now); d != test.want {
			t.Errorf("difference %q, want %q", d, test.want)
		}
	}
	if one.Fingerprint() == none.Fingerprint() {
		t.Error("two plans have one fingerprint")
	}
}

// What another cluster's run does to certificates that are shared makes no other
// plan; anything else does.
func TestSharedCertificatesAreNoOtherPlan(t *testing.T) {
	own := Change{Host: "events-0", Action: Create, Kind: Certificate, Name: "/etc/muster/pki/server.crt"}
	before := &Plan{Cluster: "events", Hosts: []string{"events-0"}, Changes: []Change{
		{Action: Create, Kind: Certificate, Name: "ca.crt", Details: []string{"missing"}, Shared: true},
		{Host: "events-0", Action: Create, Kind: Certificate, Name: "/etc/muster/pki/ca.crt", Details: []string{"a new one"}, Shared: true},
		own,
	}}
	after := &Plan{Cluster: "events", Hosts: before.Hosts, Changes: []Change{
		{Host: "events-0", Action: Create, Kind: Certificate, Name: "/etc/muster/pki/ca.crt", Details: []string{"etcd-ca, until 2036"}, Shared: true},
		own,
	}}
	if d := Difference(before, after); d != "" || before.Fingerprint() != after.Fingerprint() {
		t.Errorf("difference %q, fingerprints %s and %s", d, before.Fingerprint(), after.Fingerprint())
	}
	for name, change := range map[string]func(*Change){
		"the action":      func(c *Change) { c.Action = Update },
		"who shares it":   func(c *Change) { c.Shared = false },
		"another one":     func(c *Change) { c.Name = "/etc/muster/pki/peer.crt" },
		"on another host": func(c *Change) { c.Host = "events-1" },
	} {
		other := &Plan{Cluster: "events", Hosts: before.Hosts, Changes: slices.Clone(after.Changes)}
		change(&other.Changes[0])
		if Difference(before, other) == "" || before.Fingerprint() == other.Fingerprint() {
			t.Errorf("%s makes no difference", name)
		}
	}
}

// Directories that are Kubernetes' own stay as they are, links included.
func TestCompareFilesLeavesDirectories(t *testing.T) {
	want := desired.ForAPIServer("master", pki.Bundle{CA: []byte("ca"), APIServerEtcdClient: pki.Pair{Cert: []byte("cert"), Key: []byte("key")}})
	have := observed.Facts{Files: map[string]observed.FileFact{}}
	for i, d := range want.Directories {
		have.Files[d.Path] = observed.FileFact{Type: []string{observed.SymbolicLink, "directory"}[i%2], Mode: 0o777, Owner: "kube", Group: "kube"}
	}
	for _, f := range want.Files {
		sum := sha256.Sum256(f.Content)
		have.Files[f.Path] = observed.FileFact{Type: "regular file", Mode: f.Mode, Owner: f.Owner, Group: f.Group, SHA256: hex.EncodeToString(sum[:])}
	}
	if changes := (Host{Want: want, Have: have}).CompareFiles(); len(changes) > 0 {
		t.Errorf("planned %+v", changes)
	}
	have.Files[want.Directories[0].Path] = observed.FileFact{Type: "regular file"}
	if changes := (Host{Want: want, Have: have}).CompareFiles(); len(changes) != 1 {
		t.Errorf("where a file is in the way, planned %+v", changes)
	}
}
