package etcdsnap_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"muster/kvserver/machine"
)

var largeKeys = flag.Int("etcdsnap.keys", 60_000, "keys of the large snapshot")

// peakHeap runs fn and returns by how much the heap in use grew at most. The
// collector runs early meanwhile: what is measured is what fn holds, not how
// much garbage a busy machine lets pile up.
func peakHeap(fn func()) uint64 {
	defer debug.SetGCPercent(debug.SetGCPercent(10))
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	before := stats.HeapInuse
	var peak atomic.Uint64
	done, sampled := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(sampled)
		for {
			var now runtime.MemStats
			runtime.ReadMemStats(&now)
			peak.Store(max(peak.Load(), now.HeapInuse))
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	fn()
	close(done)
	<-sampled
	return max(peak.Load(), before) - before
}

// TestLarge saves and restores many keys in a heap that does not depend on
// their number. -etcdsnap.keys=1000000 is the long run.
func TestLarge(t *testing.T) {
	const valueSize, bound = 1024, 64 << 20
	m := openMachine(t)
	entries := &log{m: m}
	value := make([]byte, valueSize)
	for i := 0; i < *largeKeys; i += 100 {
		r := &pb.TxnRequest{}
		for j := range 100 {
			put := &pb.PutRequest{Key: fmt.Appendf(nil, "%016x", uint64(i+j)*0x9e3779b97f4a7c15), Value: value}
			r.Success = append(r.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put}})
		}
		if err := entries.apply(t, &pb.InternalRaftRequest{Txn: r}); err != nil {
			t.Fatal(err)
		}
	}
	var path string
	begun := time.Now()
	saving := peakHeap(func() { path = export(t, m) })
	saved := time.Since(begun)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	begun = time.Now()
	var back *machine.Machine
	restoring := peakHeap(func() { back = restore(t, path) })
	t.Logf("%d keys, %d MiB: saved in %v with %d MiB of heap, restored in %v with %d MiB",
		*largeKeys, info.Size()>>20, saved, saving>>20, time.Since(begun), restoring>>20)
	if saving > bound || restoring > bound {
		t.Errorf("heap grew by %d MiB and %d MiB, at most %d are allowed", saving>>20, restoring>>20, bound>>20)
	}
	want, err := m.History().HashKV(context.Background(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := back.History().HashKV(context.Background(), 0); err != nil || got != want {
		t.Errorf("restored %+v, %v, saved %+v", got, err, want)
	}
}
