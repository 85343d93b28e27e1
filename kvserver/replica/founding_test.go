package replica

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"muster/kvserver/machine"
	"muster/kvserver/membership"
)

func TestRestartKeepsMembershipAndData(t *testing.T) {
	c := startCluster(t, 3)
	c.put(0, "k", "before")
	c.linearize(1)
	first := c.members[1].have("k")
	before, err := c.members[1].voters()
	if err != nil || len(before) != 3 {
		t.Fatalf("voters are %v, %v", before, err)
	}
	for i := range c.members {
		c.stop(i)
	}
	// Alone, with nobody to tell it: what it knows is from its own disk.
	c.start(1)
	after, err := c.members[1].voters()
	if err != nil || !reflect.DeepEqual(before, after) {
		t.Errorf("after a restart the voters are %v (%v), before %v", after, err, before)
	}
	if got := len(c.members[1].Machine().Members()); got != 3 {
		t.Errorf("%d members after a restart, want 3", got)
	}
	c.start(0)
	c.start(2)
	for i := range c.members {
		c.awaitReady(i)
		got := c.members[i].have("k")
		if len(got.Kvs) != 1 || got.Kvs[0].ModRevision != first.Kvs[0].ModRevision || string(got.Kvs[0].Value) != "before" {
			t.Errorf("m%d has %v, before the restart %v", i, got.Kvs, first.Kvs)
		}
	}
	for i, m := range c.members {
		var entry raft.Log
		if err := m.log.GetLog(2, &entry); err != nil || entry.Term != 1 || entry.Type != raft.LogNoop {
			t.Errorf("m%d: entry 2 is %v of term %d (%v); the cluster was founded again", i, entry.Type, entry.Term, err)
		}
	}
}

func TestDataDirectoryIsRefused(t *testing.T) {
	for name, test := range map[string]struct {
		spoil  func(t *testing.T, config *Config)
		want   error
		saying string
	}{
		"lost raft log": {func(t *testing.T, config *Config) {
			remove(t, config.Dir, "log")
		}, ErrWiped, "its raft log is gone"},
		"lost raft log entries": {func(t *testing.T, config *Config) {
			log, err := openLog(filepath.Join(config.Dir, "log"), nil, hashicorpLogger("log", config.Logger), nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(log.wipe(), log.Close()); err != nil {
				t.Fatal(err)
			}
		}, ErrWiped, "its raft log is gone"},
		"lost store": {func(t *testing.T, config *Config) {
			remove(t, config.Dir, "kv")
		}, ErrWiped, "its store is gone"},
		"lost identity": {func(t *testing.T, config *Config) {
			remove(t, config.Dir, identityFile)
		}, ErrForeignData, "nothing is started over data of unknown origin"},
		"damaged identity": {func(t *testing.T, config *Config) {
			write(t, filepath.Join(config.Dir, identityFile), "{")
		}, nil, "read the data directory's identity"},
		"newer format": {func(t *testing.T, config *Config) {
			write(t, filepath.Join(config.Dir, identityFile), `{"format": 99}`)
		}, nil, "has format 99, this musterd reads 2"},
		"another name": {func(_ *testing.T, config *Config) {
			config.Self.Name = "other"
		}, ErrForeignData, `was made by member "m0", --name is "other"`},
		"another token": {func(_ *testing.T, config *Config) {
			config.Cluster.Token = "other"
		}, ErrForeignData, `was made with --initial-cluster-token "test", now it is "other"`},
		"another store's newer snapshot record": {func(t *testing.T, config *Config) {
			write(t, filepath.Join(config.Dir, "snapshots", snapshotFile), `{"format": 1, "index": 1000, "term": 2, "applied": 1000}`)
		}, nil, "the data directory is damaged"},
		"a gap between snapshot and log": {func(t *testing.T, config *Config) {
			log, err := openLog(filepath.Join(config.Dir, "log"), nil, hashicorpLogger("log", config.Logger), nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(log.DeleteRange(2, 3), log.Close()); err != nil {
				t.Fatal(err)
			}
		}, nil, "the raft log begins at 4"},
	} {
		t.Run(name, func(t *testing.T) {
			c := startCluster(t, 1)
			c.put(0, "k", "v")
			c.stop(0)
			original := c.members[0].config
			test.spoil(t, &c.members[0].config)
			err := c.tryStart(0)
			if err == nil {
				t.Fatal("started")
			}
			if test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("error %q is not %q", err, test.want)
			}
			if !strings.Contains(err.Error(), test.saying) {
				t.Errorf("error %q does not say %q", err, test.saying)
			}
			c.members[0].config = original
		})
	}
}

func TestWipedMemberIsRefused(t *testing.T) {
	c := startCluster(t, 3)
	f := c.follower()
	c.put(f, "k", "v")
	c.stop(f)
	if err := os.RemoveAll(c.members[f].config.Dir); err != nil {
		t.Fatal(err)
	}
	err := c.tryStart(f)
	if !errors.Is(err, ErrWiped) || !strings.Contains(err.Error(), "remove member") {
		t.Fatalf("a member that lost its directory: %v, want ErrWiped and what to do", err)
	}
	if err := c.tryStart(f); !errors.Is(err, ErrWiped) {
		t.Errorf("the second try: %v, want ErrWiped again", err)
	}
}

// Founding takes several writes to disk; a stop after any of them is completed
// by the next start.
func TestFoundingIsCompleted(t *testing.T) {
	steps := []string{"identity saved", "members seeded", "term written", "entry written", "founded but not marked"}
	for upTo, name := range steps {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 1)
			config := c.members[0].config
			foundPartly(t, config, upTo)
			c.start(0)
			c.awaitReady(0)
			c.put(0, "k", "v")
			known, err := LoadIdentity(config.Dir)
			if err != nil || !known.Founded {
				t.Errorf("the identity is %+v (%v), want founded", known, err)
			}
			voters, err := c.members[0].voters()
			if err != nil || len(voters) != 1 {
				t.Errorf("voters are %v, %v", voters, err)
			}
		})
	}
}

func foundPartly(t *testing.T, config Config, upTo int) {
	t.Helper()
	r := &local{config: config, logger: config.Logger, failed: make(chan error, 1)}
	var err error
	if err = os.MkdirAll(config.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if r.identity, err = identify(config); err != nil {
		t.Fatal(err)
	}
	if err = os.MkdirAll(filepath.Join(config.Dir, "log"), 0o700); err != nil {
		t.Fatal(err)
	}
	if r.machine, err = machine.Open(filepath.Join(config.Dir, "kv"), machine.Options{}); err != nil {
		t.Fatal(err)
	}
	if r.log, err = openLog(filepath.Join(config.Dir, "log"), nil, hashicorpLogger("log", config.Logger), func(error) {}); err != nil {
		t.Fatal(err)
	}
	if r.snapshots, err = openSnapshots(filepath.Join(config.Dir, "snapshots"), r.machine, config.Logger); err != nil {
		t.Fatal(err)
	}
	configuration, members := (&founder{config: config}).founders()
	steps := []func() error{
		func() error { return nil },
		func() error {
			return r.machine.Membership().Seed(members, machine.Position{
				Index: 1, Term: 1, ConfigurationIndex: 1, Configuration: raft.EncodeConfiguration(configuration),
			})
		},
		func() error { return r.log.SetUint64([]byte("CurrentTerm"), 1) },
		func() error { return r.log.StoreLog(&raft.Log{Index: 2, Term: 1, Type: raft.LogNoop}) },
		func() error { return r.snapshots.found(configuration) },
	}
	for _, step := range steps[:upTo+1] {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(r.log.Close(), r.machine.Close()); err != nil {
		t.Fatal(err)
	}
}

// Two clusters whose members were mixed up do not talk to each other, and both
// sides say why.
func TestOtherClusterIsRefused(t *testing.T) {
	c := newCluster(t, 2)
	other, err := membership.ParseInitialCluster("m0="+c.members[0].config.Self.PeerURLs[0]+",m1="+c.members[1].config.Self.PeerURLs[0], "another-token")
	if err != nil {
		t.Fatal(err)
	}
	var heard [2]lines
	for i := range c.members {
		c.members[i].config.Logger = heard[i].logger()
	}
	c.members[1].config.Cluster = other
	c.members[1].config.Self, _ = other.ByName("m1")
	c.startAll()
	for i := range c.members {
		eventually(t, "both members to say that the cluster ids differ", func() bool {
			return heard[i].contain("cluster id mismatch")
		})
	}
	if c.members[0].Status().Leader != 0 || c.members[1].Status().Leader != 0 {
		t.Error("members of different clusters elected a leader")
	}
}

func remove(t *testing.T, elements ...string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(elements...)); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
