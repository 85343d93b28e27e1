package kvserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/status"

	"muster/kvserver/corruption"
	"muster/kvserver/machine"
	"muster/kvserver/mvcc"
)

// changeOffline changes the value of a key in the store of a member that does
// not run, behind everybody's back.
func changeOffline(t *testing.T, dataDir, key, from, to string) {
	t.Helper()
	stores, err := filepath.Glob(filepath.Join(dataDir, "kv", "store-*"))
	if err != nil || len(stores) != 1 {
		t.Fatalf("the stores are %q: %v", stores, err)
	}
	store, err := mvcc.Open(stores[0], mvcc.Options{MustExist: true})
	if err != nil {
		t.Fatal(err)
	}
	it, err := store.DB().NewIter(&pebble.IterOptions{LowerBound: []byte("k" + key), UpperBound: []byte("k" + key + "\x01")})
	if err != nil {
		t.Fatal(err)
	}
	changed := 0
	for valid := it.First(); valid; valid = it.Next() {
		value := bytes.ReplaceAll(it.Value(), []byte(from), []byte(to))
		if bytes.Equal(value, it.Value()) {
			continue
		}
		changed++
		if err := store.DB().Set(bytes.Clone(it.Key()), value, pebble.NoSync); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(it.Close(), store.Flush(), store.Close()); err != nil || changed == 0 {
		t.Fatalf("%d versions were changed: %v", changed, err)
	}
}

// flushed waits until a member has a revision on disk.
func flushed(t *testing.T, server *Server, rev int64) {
	t.Helper()
	within(t, 30*time.Second, fmt.Sprintf("a member reaches revision %d", rev), func() bool {
		return server.replica.Machine().Revision() >= rev
	})
	if err := server.replica.Machine().Flush(); err != nil {
		t.Fatal(err)
	}
}

// awaitAlarm waits until an alarm is raised, which must be the only one.
func awaitAlarm(t *testing.T, server *Server) *pb.AlarmMember {
	t.Helper()
	var alarms []*pb.AlarmMember
	within(t, time.Minute, "an alarm is raised", func() bool {
		alarms = server.replica.Machine().Alarms()
		return len(alarms) > 0
	})
	if len(alarms) > 1 {
		t.Errorf("more than one alarm: %v", alarms)
	}
	return alarms[0]
}

// within asks again and again until it is so.
func within(t *testing.T, limit time.Duration, what string, is func() bool) {
	t.Helper()
	deadline := time.After(limit)
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for !is() {
		select {
		case <-again.C:
		case <-deadline:
			t.Fatalf("waited %v, but never saw that %s", limit, what)
		}
	}
}

// TestCorruptMemberIsFound changes a value on one of three members. It does not
// start when it compares its data first; when it does not, the alarm is raised
// for it, and for nobody before.
func TestCorruptMemberIsFound(t *testing.T) {
	for name, set := range map[string]func(*Config){
		"comparing the present": func(c *Config) { c.CorruptCheckTime = 20 * time.Millisecond },
		"comparing compactions": func(c *Config) { c.CompactHashCheck, c.CompactHashCheckTime = true, 20*time.Millisecond },
	} {
		t.Run(name, func(t *testing.T) {
			configs := founders(t)
			servers := make([]*Server, len(configs))
			stops := make([]func(), len(configs))
			for i := range configs {
				set(&configs[i])
				servers[i], stops[i] = start(t, configs[i])
			}
			for _, server := range servers {
				awaitReady(t, server)
			}
			ours := connect(t, servers[0].clients[0].Addr().String())
			keys := pb.NewKVClient(ours.conn)
			compactNow := func() {
				now := must(t, ours, keys.Range, &pb.RangeRequest{Key: []byte("k")}).Header.Revision
				must(t, ours, keys.Compact, &pb.CompactionRequest{Revision: now})
			}

			// No alarm comes of load, nor of everything being deleted.
			must(t, ours, keys.Put, &pb.PutRequest{Key: []byte("k"), Value: []byte("healthy")})
			for i := range 300 {
				must(t, ours, keys.Put, &pb.PutRequest{Key: fmt.Appendf(nil, "load%d", i%7), Value: fmt.Append(nil, i)})
				if i%10 == 0 {
					must(t, ours, keys.DeleteRange, &pb.DeleteRangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
					must(t, ours, keys.Put, &pb.PutRequest{Key: []byte("k"), Value: []byte("healthy")})
				}
				if i%15 == 0 {
					compactNow()
				}
			}
			if alarms := servers[0].replica.Machine().Alarms(); len(alarms) > 0 {
				t.Fatalf("an alarm without a reason: %v", alarms)
			}

			const corrupt = 2
			flushed(t, servers[corrupt], servers[0].replica.Machine().Revision())
			stops[corrupt]()
			changeOffline(t, configs[corrupt].DataDir, "k", "healthy", "corrupt")

			checked := configs[corrupt]
			checked.InitialCorruptCheck = true
			if server, err := Start(checked); !errors.Is(err, corruption.ErrCorrupt) {
				if err == nil {
					_ = server.Close()
				}
				t.Fatalf("a member whose data differs has started: %v", err)
			}
			checked = configs[1]
			checked.InitialCorruptCheck = true
			stops[1]()
			servers[1], stops[1] = start(t, checked) // the healthy one does

			servers[corrupt], stops[corrupt] = start(t, configs[corrupt])
			awaitReady(t, servers[corrupt])
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if _, err := keys.Put(ctx, &pb.PutRequest{Key: []byte("other")}); err != nil && !isCorrupt(err) {
				t.Fatal(err)
			}
			if _, err := keys.Compact(ctx, &pb.CompactionRequest{Revision: servers[0].replica.Machine().Revision()}); err != nil && !isCorrupt(err) {
				t.Fatal(err)
			}
			alarm := awaitAlarm(t, servers[0])
			if alarm.Alarm != pb.AlarmType_CORRUPT || alarm.MemberID != servers[corrupt].replica.Member() {
				t.Errorf("the alarm is %v, the corrupt member is %d", alarm, servers[corrupt].replica.Member())
			}
			if _, err := keys.Put(ctx, &pb.PutRequest{Key: []byte("k")}); !isCorrupt(err) {
				t.Errorf("a put in a corrupt cluster: %v", err)
			}
		})
	}
}

func isCorrupt(err error) bool {
	return strings.Contains(status.Convert(err).Message(), machine.ErrCorrupt.Error())
}
