package provision

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muster/pki"
	"muster/provision/practice"
	"muster/provision/step"
)

func (l *lab) doctor() *Checkup {
	l.t.Helper()
	begun := time.Now()
	c, err := Doctor(l.context(), l.cluster, l.opts)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Logf("doctor took %v", time.Since(begun).Round(time.Millisecond))
	return c
}

// finds demands a finding that contains all texts, on a host.
func (c *Checkup) finds(t *testing.T, where string, texts ...string) {
	t.Helper()
	for _, f := range c.Findings {
		all := f.Where == where
		for _, text := range texts {
			all = all && strings.Contains(f.What+"; "+f.Remedy, text)
		}
		if all {
			return
		}
	}
	t.Errorf("no finding of %q on %s in %+v", texts, where, c.Findings)
}

// unexpected are the findings that do not depend on how loaded this machine is.
func (c *Checkup) unexpected() []Finding {
	var found []Finding
	for _, f := range c.Findings {
		if !strings.Contains(f.What, "flushing a write") && !strings.Contains(f.What, "are short for round trips") {
			found = append(found, f)
		}
	}
	return found
}

// hostFiles are all files of a host's own, with their contents.
func (l *lab) hostFiles(i int) map[string]string {
	l.t.Helper()
	root, files := l.hosts[i].Path("/"), map[string]string{}
	for _, dir := range []string{"etc", "usr", "var/tmp", "tmp"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				files[path] = "directory"
				return err
			}
			info, err := d.Info()
			if err == nil {
				files[path] = info.ModTime().String() + " " + info.Mode().String()
			}
			return err
		})
		if err != nil && !os.IsNotExist(err) {
			l.t.Fatal(err)
		}
	}
	return files
}

func TestDoctorBeforeInstallation(t *testing.T) {
	l := newLab(t, 2)
	l.opts.SSH.RetryFor = 100 * time.Millisecond
	before := l.hostFiles(0)
	c := l.doctor()
	if found := c.unexpected(); len(found) > 0 {
		t.Errorf("found on good hosts: %+v", found)
	}
	for _, h := range c.Hosts {
		if !h.Reached || h.Machine == "" || h.Systemd == 0 || h.Free == 0 || h.Sync.P99 == 0 {
			t.Errorf("%+v", h)
		}
	}
	for _, p := range c.Pairs {
		if p.Trip.Error != "" || p.Trip.Median == 0 {
			t.Errorf("%+v", p)
		}
	}
	if len(c.Pairs) != 4 || c.Timeouts.RoundTrip == 0 || c.Timeouts.Heartbeat != 100 || c.Timeouts.ProposedElection < 1000 {
		t.Errorf("%d pairs, %+v", len(c.Pairs), c.Timeouts)
	}
	after := l.hostFiles(0)
	for path, was := range before {
		if after[path] != was {
			t.Errorf("%s was %q and is %q", path, was, after[path])
		}
		delete(after, path)
	}
	if len(after) > 0 {
		t.Errorf("left behind: %v", after)
	}

	// Somebody else has the peer port of one, the other cannot be reached.
	taken, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strings.TrimPrefix(l.cluster.Hosts[0].PeerURL(), "https://127.0.0.1:")))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	l.hosts[1].Inject(practice.Faults{RefuseConnections: true})
	l.hosts[0].Inject(practice.Faults{ClockOffset: time.Hour, Machine: "riscv64", FreeSpace: 1 << 20})
	c = l.doctor()
	c.finds(t, "controller-1", "connect", "check the address")
	c.finds(t, "controller-0", "the clock is 1h0m0s ahead")
	c.finds(t, "controller-0", "riscv64 is not supported")
	c.finds(t, "controller-0", "1 MiB are free")
}

func TestDoctor(t *testing.T) {
	l := newLab(t, 3)
	l.mustApply()
	if found := l.doctor().unexpected(); len(found) > 0 {
		t.Fatalf("found on a good cluster: %+v", found)
	}

	// A run is at work: an apply that is held up.
	release := make(chan struct{})
	held, ended := make(chan struct{}), make(chan error, 1)
	opts := l.opts
	opts.Reporter = reporterFunc(func(e step.Event) {
		if e.Kind == step.Started && e.Step == "facts" && e.Host == "controller-0" {
			close(held)
			<-release
		}
	})
	go func() {
		_, err := Apply(l.context(), l.cluster, opts)
		ended <- err
	}()
	select {
	case <-held:
	case err := <-ended:
		t.Fatal(err)
	}
	l.doctor().finds(t, "controller-0", "another run of muster is at work", "apply")
	close(release)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	l.sh(0, `echo x >> /etc/muster/pki/server.crt; printf 'no certificate' > /etc/muster/pki/peer.crt; systemctl disable musterd`)
	l.sh(1, "systemctl stop musterd; rm /usr/local/bin/musterd /etc/muster/pki/peer.key")
	// Another CA's certificate, for another host.
	other, _, err := pki.Ensure(t.Context(), filepath.Join(l.dir, "other-pki"), pki.Spec{
		Algorithm: pki.ECDSAP256, CALifetime: time.Hour, LeafLifetime: time.Hour, Hosts: []pki.Host{{Name: "stranger"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.hosts[2].Path("/etc/muster/pki/server.crt"), other.Hosts["stranger"].Server.Cert, 0o600); err != nil {
		t.Fatal(err)
	}
	c := l.doctor()
	c.finds(t, "controller-0", "/etc/muster/pki/peer.crt is not a certificate in PEM")
	c.finds(t, "controller-0", "does not start at boot", "muster apply")
	c.finds(t, "controller-1", "is installed without /usr/local/bin/musterd, /etc/muster/pki/peer.key", "muster apply")
	c.finds(t, "controller-1", "musterd.service is inactive", "muster logs controller-1")
	c.finds(t, "controller-2", "/etc/muster/pki/server.crt was not signed by the CA on the host")
	c.finds(t, "controller-2", "/etc/muster/pki/server.crt expires on")

	l.mustApply()
	if found := l.doctor().unexpected(); len(found) > 0 {
		t.Errorf("found after apply has put it right: %+v", found)
	}
}

func TestTimeoutsAreProposed(t *testing.T) {
	for _, test := range []struct {
		name       string
		in         Timeouts
		heartbeat  int
		election   int
		isAFinding bool
	}{
		{"one rack", Timeouts{Heartbeat: 100, Election: 1000, RoundTrip: 200 * time.Microsecond, Sync: 2 * time.Millisecond}, 100, 1000, false},
		{"slow disks", Timeouts{Heartbeat: 100, Election: 1000, RoundTrip: time.Millisecond, Sync: 150 * time.Millisecond}, 100, 1600, true},
		{"an ocean", Timeouts{Heartbeat: 100, Election: 1000, RoundTrip: 130 * time.Millisecond, Sync: 2 * time.Millisecond}, 200, 2000, true},
		{"an ocean, known", Timeouts{Heartbeat: 200, Election: 2000, RoundTrip: 130 * time.Millisecond, Sync: 2 * time.Millisecond}, 200, 2000, false},
		{"beyond etcd's limit", Timeouts{Heartbeat: 100, Election: 1000, RoundTrip: 9 * time.Second}, 13500, 50000, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := &doctor{checkup: Checkup{Timeouts: test.in}}
			d.propose()
			got := d.checkup.Timeouts
			if got.ProposedHeartbeat != test.heartbeat || got.ProposedElection != test.election || (len(d.checkup.Findings) > 0) != test.isAFinding {
				t.Errorf("proposed %d and %d, found %+v", got.ProposedHeartbeat, got.ProposedElection, d.checkup.Findings)
			}
		})
	}
}
