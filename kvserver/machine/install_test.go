package machine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

const incomingDir = "data/incoming"

// putAll applies one entry per key, from index first, that sets it to value.
func putAll(t testing.TB, m *Machine, first uint64, value string, keys int) {
	t.Helper()
	for i := range keys {
		e := Entry{Index: first + uint64(i), Term: 1, Payload: batchOf(t, 1,
			&pb.InternalRaftRequest{Put: &pb.PutRequest{Key: fmt.Appendf(nil, "key-%02d", i), Value: []byte(value)}})}
		if _, err := m.Apply([]Entry{e}, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// copyDir copies a directory without subdirectories to another file system.
func copyDir(t testing.TB, from, to vfs.FS, dir string) {
	t.Helper()
	if _, err := vfs.Clone(from, to, dir, dir, vfs.CloneSync); err != nil {
		t.Fatal(err)
	}
}

// checkpointAt makes a checkpoint in incomingDir of to, of a machine that has
// applied twenty entries with the value "new".
func checkpointAt(t testing.TB, to vfs.FS) Position {
	t.Helper()
	fs := vfs.NewMem()
	m := openMem(t, fs)
	defer closeMachine(t, m)
	if err := m.Membership().Seed(seededMembers, Position{}); err != nil {
		t.Fatal(err)
	}
	putAll(t, m, 101, "new", 20)
	if _, err := m.Apply([]Entry{{Index: 121, Term: 4, Configuration: []byte("new")}}, nil); err != nil {
		t.Fatal(err)
	}
	p, err := m.Checkpoint(incomingDir)
	if err != nil {
		t.Fatal(err)
	}
	copyDir(t, fs, to, incomingDir)
	return p
}

// values tells which values a machine has under the keys of putAll.
func values(m *Machine) (string, error) {
	r, err := m.Range(context.Background(), &pb.RangeRequest{Key: []byte("key-"), RangeEnd: []byte("key.")})
	if err != nil {
		return "", err
	}
	seen := map[string]bool{}
	for _, kv := range r.Kvs {
		seen[string(kv.Value)] = true
	}
	if len(seen) != 1 {
		return "", fmt.Errorf("a mixture of %v in %d keys", seen, len(r.Kvs))
	}
	return fmt.Sprintf("%d %s", len(r.Kvs), r.Kvs[0].Value), nil
}

func mustValues(t testing.TB, m *Machine, want string) {
	t.Helper()
	if got, err := values(m); err != nil || got != want {
		t.Errorf("values %q, %v, want %q", got, err, want)
	}
}

func TestCheckpointPosition(t *testing.T) {
	fs := vfs.NewMem()
	p := checkpointAt(t, fs)
	want := Position{Index: 121, Term: 4, ConfigurationIndex: 121, Configuration: []byte("new")}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("position %+v, want %+v", p, want)
	}
}

// TestCheckpointWhileApplying takes checkpoints beside a writer: the position
// returned must be exactly that of the content.
func TestCheckpointWhileApplying(t *testing.T) {
	fs := vfs.NewMem()
	m := openMem(t, fs)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for i := uint64(1); ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			putAll(t, m, i, fmt.Sprint(i), 1)
		}
	}()
	for i := range 10 {
		dir := fmt.Sprintf("data/checkpoint-%d", i)
		p, err := m.Checkpoint(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Install(dir); err != nil {
			t.Fatal(err)
		}
		// The writer goes on where it was, so its entries are above.
		if index, _ := m.Applied(); index < p.Index {
			t.Errorf("applied %d after the installation of a checkpoint at %d", index, p.Index)
		}
	}
	close(stop)
	<-stopped
	closeMachine(t, m)
}

func TestInstall(t *testing.T) {
	fs := vfs.NewMem()
	m := openMem(t, fs)
	if err := m.Membership().Seed(seededMembers[:1], Position{}); err != nil {
		t.Fatal(err)
	}
	putAll(t, m, 1, "old", 10)
	p := checkpointAt(t, fs)
	if err := m.Install(incomingDir); err != nil {
		t.Fatal(err)
	}
	for round := range 2 {
		mustValues(t, m, "20 new")
		if got := m.state.Load().Position; !reflect.DeepEqual(got, p) {
			t.Errorf("round %d: position %+v, want %+v", round, got, p)
		}
		if got := m.Members(); !reflect.DeepEqual(got, seededMembers) {
			t.Errorf("round %d: members %+v, want %+v", round, got, seededMembers)
		}
		names, err := fs.List(machineDir)
		if err != nil {
			t.Fatal(err)
		}
		var stores []string
		for _, name := range names {
			if strings.HasPrefix(name, storePrefix) {
				stores = append(stores, name)
			}
		}
		if !reflect.DeepEqual(stores, []string{"store-000002"}) {
			t.Errorf("round %d: stores %v", round, stores)
		}
		closeMachine(t, m)
		m = openMem(t, fs)
	}
	putAll(t, m, 122, "newer", 20)
	mustValues(t, m, "20 newer")
	closeMachine(t, m)
}

// TestInstallBesideReads makes sure that readers see the old state or the new
// one and never an error, and that a read under way keeps its store.
func TestInstallBesideReads(t *testing.T) {
	fs := vfs.NewMem()
	m := openMem(t, fs)
	putAll(t, m, 1, "old", 10)
	checkpointAt(t, fs)

	held, err := m.stores.acquire()
	if err != nil {
		t.Fatal(err)
	}
	view := held.store.Pin()

	var readers sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		readers.Go(func() {
			last := "10 old"
			for {
				select {
				case <-stop:
					return
				default:
				}
				got, err := values(m)
				switch {
				case err != nil:
					t.Errorf("read: %v", err)
					return
				case got == last:
				case got == "20 new":
					last = got
				default:
					t.Errorf("read %q after %q", got, last)
					return
				}
			}
		})
	}
	if err := m.Install(incomingDir); err != nil {
		t.Error(err)
	}
	mustValues(t, m, "20 new")
	r, err := view.Range(context.Background(), &pb.RangeRequest{Key: []byte("key-00")})
	if err != nil || len(r.Kvs) != 1 || string(r.Kvs[0].Value) != "old" {
		t.Errorf("a view from before the installation: %v, %v", r, err)
	}
	close(stop)
	readers.Wait()
	if err := view.Close(); err != nil {
		t.Error(err)
	}
	held.release()
	<-held.closed
	if _, err := fs.Stat("data/machine/store-000001"); err == nil {
		t.Error("the replaced store is still there")
	}
	closeMachine(t, m)
}

// TestInstallCrash crashes at every operation of the file system that an
// installation makes. What is left must open as the old state or the new one.
func TestInstallCrash(t *testing.T) {
	mem := vfs.NewCrashableMem()
	m := openMem(t, mem)
	putAll(t, m, 1, "old", 10)
	if err := m.Flush(); err != nil {
		t.Fatal(err)
	}
	closeMachine(t, m)
	checkpointAt(t, mem)

	g := newGenerator(t)
	var mu sync.Mutex
	var crashes []*vfs.MemFS
	installing := false
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if installing && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			for _, percent := range []int{0, 50, 100} {
				crashes = append(crashes, mem.CrashClone(vfs.CrashCloneCfg{
					UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(g.Uint64(), 1)),
				}))
			}
		}
		return nil
	}))
	m = openMem(t, fs)
	mu.Lock()
	installing = true
	mu.Unlock()
	if err := m.Install(incomingDir); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	installing = false
	mu.Unlock()
	closeMachine(t, m)

	seen := map[string]int{}
	for i, crash := range crashes {
		m, err := Open(machineDir, Options{FS: crash})
		if err != nil {
			t.Fatalf("crash %d of %d: %v", i, len(crashes), err)
		}
		got, err := values(m)
		if err != nil || got != "10 old" && got != "20 new" {
			t.Fatalf("crash %d of %d: values %q, %v", i, len(crashes), got, err)
		}
		index, _ := m.Applied()
		if want := map[string]uint64{"10 old": 10, "20 new": 121}[got]; index != want {
			t.Fatalf("crash %d of %d: values %q at index %d, want %d", i, len(crashes), got, index, want)
		}
		seen[got]++
		closeMachine(t, m)
	}
	t.Logf("%v", seen)
	if len(seen) != 2 {
		t.Errorf("only %v was seen", seen)
	}
}

// TestInstallFailure makes every operation of the file system that an
// installation makes outside of Pebble fail once; Pebble itself does not
// survive all such failures. The machine must go on with the old state, or
// have the new one, and say which.
func TestInstallFailure(t *testing.T) {
	failed := 0
	for at := int32(0); ; at++ {
		mem := vfs.NewMem()
		index := errorfs.OnIndex(at)
		toggle := &errorfs.Toggle{Injector: errorfs.InjectorFunc(func(op errorfs.Op) error {
			switch op.Kind {
			case errorfs.OpRename, errorfs.OpRemoveAll:
				if strings.Contains(op.Path, "dbtmp") {
					return nil // Pebble's
				}
			case errorfs.OpFileSync:
				if !strings.HasPrefix(op.Path, incomingDir) {
					return nil // that of the marker ends the process
				}
			default:
				if strings.Contains(op.Path, storePrefix+"0") && !strings.Contains(op.Path, "marker."+markerName) {
					return nil
				}
			}
			return index.MaybeError(op)
		})}
		m := openMem(t, errorfs.Wrap(mem, toggle))
		putAll(t, m, 1, "old", 10)
		checkpointAt(t, mem)
		toggle.On()
		err := m.Install(incomingDir)
		toggle.Off()
		if err != nil {
			failed++
			if !errors.Is(err, errorfs.ErrInjected) {
				t.Errorf("operation %d: %v", at, err)
			}
			mustValues(t, m, "10 old")
			putAll(t, m, 11, "old", 10)
		} else {
			mustValues(t, m, "20 new")
		}
		closeMachine(t, m)
		if index.Load() >= 0 {
			break // there are fewer operations than that
		}
	}
	t.Logf("%d operations failed the installation", failed)
	if failed < 5 {
		t.Error("hardly any failure was tried")
	}
}

// TestInstallInDoubt makes it impossible to say which store is current. The
// machine must not go on, and the next start must find a state.
func TestInstallInDoubt(t *testing.T) {
	mem := vfs.NewMem()
	toggle := &errorfs.Toggle{Injector: errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpCreate && strings.Contains(op.Path, "marker."+markerName) {
			return errorfs.ErrInjected
		}
		return nil
	})}
	m := openMem(t, errorfs.Wrap(mem, toggle))
	putAll(t, m, 1, "old", 10)
	if err := m.Flush(); err != nil {
		t.Fatal(err)
	}
	checkpointAt(t, mem)
	toggle.On()
	if err := m.Install(incomingDir); !errors.Is(err, errInDoubt) {
		t.Errorf("install: %v", err)
	}
	toggle.Off()
	if _, err := values(m); !errors.Is(err, ErrClosed) {
		t.Errorf("read: %v, want %v", err, ErrClosed)
	}
	closeMachine(t, m)
	m = openMem(t, mem)
	defer closeMachine(t, m)
	mustValues(t, m, "10 old")
}

func TestInstallRefusesOtherFiles(t *testing.T) {
	fs := vfs.NewMem()
	m := openMem(t, fs)
	defer closeMachine(t, m)
	putAll(t, m, 1, "old", 10)
	if err := m.Install("data/nothing"); err == nil {
		t.Error("a directory that does not exist was installed")
	}
	if err := fs.MkdirAll(incomingDir, 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := fs.Create(incomingDir+"/000001.sst", vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := m.Install(incomingDir); err == nil {
		t.Error("a directory without a store was installed")
	}
	mustValues(t, m, "10 old")

	if err := fs.RemoveAll(incomingDir); err != nil {
		t.Fatal(err)
	}
	checkpointAt(t, fs)
	names, err := fs.List(incomingDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, ".sst") {
			if err := fs.Remove(incomingDir + "/" + name); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	if err := m.Install(incomingDir); err == nil {
		t.Error("a checkpoint without one of its tables was installed")
	}
	mustValues(t, m, "10 old")
	putAll(t, m, 11, "old", 10)
}
