package machine

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// BenchmarkApplyPut puts values of 256 bytes under keys of 16, new ones and
// ones that exist (100,000, or 10,000 that are put all the time), one or a
// hundred to an entry. One operation is one put.
func BenchmarkApplyPut(b *testing.B) {
	for _, size := range []int{1, 100} {
		for _, load := range []struct {
			name string
			keys int
		}{{"busy", 10_000}, {"overwrite", 100_000}, {"new", 1 << 40}} {
			b.Run(fmt.Sprintf("batch=%d/%s", size, load.name), func(b *testing.B) { benchmarkApplyPut(b, size, load.keys) })
		}
	}
}

func benchmarkApplyPut(b *testing.B, size, keys int) {
	m, err := Open(b.TempDir(), Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer closeMachine(b, m)
	load := newLoad(b, m)
	if keys < 1<<30 {
		load.fill(keys)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for done := 0; done < b.N; {
		b.StopTimer()
		n := min(size, b.N-done)
		e := load.entry(n, func() uint64 { return load.Uint64N(uint64(keys)) })
		b.StartTimer()
		if out, err := m.Apply(e, all); err != nil || len(out) != n {
			b.Fatalf("%d outcomes of %d: %v", len(out), n, err)
		}
		done += n
	}
}

// BenchmarkRange reads single keys, and lists of a hundred, out of 100,000.
func BenchmarkRange(b *testing.B) {
	m, err := Open(b.TempDir(), Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer closeMachine(b, m)
	load := newLoad(b, m)
	const keys = 100_000
	load.fill(keys)
	ctx := context.Background()
	b.Run("key", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			r, err := m.Range(ctx, &pb.RangeRequest{Key: load.key(load.Uint64N(keys))})
			if err != nil || len(r.Kvs) != 1 {
				b.Fatal(r, err)
			}
		}
	})
	b.Run("list=100", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			first := load.Uint64N(keys - 100)
			r, err := m.Range(ctx, &pb.RangeRequest{Key: load.key(first), RangeEnd: load.key(first + 100)})
			if err != nil || len(r.Kvs) != 100 {
				b.Fatal(r, err)
			}
		}
	})
}

// load makes entries full of puts.
type load struct {
	*rand.Rand
	b         *testing.B
	m         *Machine
	value     []byte
	index, id uint64
}

func newLoad(b *testing.B, m *Machine) *load {
	return &load{Rand: rand.New(rand.NewPCG(1, 1)), b: b, m: m, value: make([]byte, 256)}
}

func (l *load) key(n uint64) []byte { return fmt.Appendf(nil, "%016x", n) }

func (l *load) entry(n int, key func() uint64) []Entry {
	requests := make([][]byte, n)
	for i := range requests {
		l.id++
		for j := range l.value {
			l.value[j] = byte(l.Uint32())
		}
		r, err := proto.Marshal(&pb.InternalRaftRequest{
			Header: &pb.RequestHeader{ID: l.id},
			Put:    &pb.PutRequest{Key: l.key(key()), Value: l.value},
		})
		if err != nil {
			l.b.Fatal(err)
		}
		requests[i] = r
	}
	l.index++
	return []Entry{{Index: l.index, Term: 1, Payload: EncodeBatch(1, requests)}}
}

// fill puts the keys from 0 up.
func (l *load) fill(keys int) {
	next := uint64(0)
	for range keys / 100 {
		e := l.entry(100, func() uint64 { next++; return next - 1 })
		if _, err := l.m.Apply(e, nil); err != nil {
			l.b.Fatal(err)
		}
	}
}
