package mvcc

import (
	"bytes"
	"errors"
	"math"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

func TestRecordIsKeyValue(t *testing.T) {
	for _, kv := range []*mvccpb.KeyValue{
		{Key: []byte("a")},
		{Key: []byte("a"), Value: []byte("b"), CreateRevision: 2, ModRevision: 3, Version: 2, Lease: 7},
		{Key: bytes.Repeat([]byte{0xff}, 300), Value: make([]byte, 1<<16), CreateRevision: 1, ModRevision: math.MaxInt64, Version: 1 << 31},
		{Key: []byte{0}, Value: []byte{0}, Lease: -1},
	} {
		r := Record{
			Key: kv.Key, Value: kv.Value, CreateRevision: kv.CreateRevision,
			ModRevision: kv.ModRevision, Version: kv.Version, Lease: kv.Lease,
		}
		got := r.append(nil)
		want, err := proto.MarshalOptions{Deterministic: true}.Marshal(kv)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) || len(got) != r.size() {
			t.Errorf("%v: %d bytes, size %d, protobuf has %d", kv.Key, len(got), r.size(), len(want))
		}
		back, err := decodeRecord(want)
		if err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(back.KeyValue(), kv) {
			t.Errorf("%v comes back as %v", kv, back.KeyValue())
		}
	}
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add(Record{Key: []byte("key"), Value: []byte("value"), CreateRevision: 1, ModRevision: 2, Version: 3, Lease: 4}.append(nil))
	f.Add([]byte{0x0a, 0x05, 'k'})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		var want mvccpb.KeyValue
		wantErr := proto.Unmarshal(raw, &want)
		got, err := decodeRecord(raw)
		if err != nil {
			if wantErr == nil {
				t.Fatalf("%x: %v, protobuf reads %v", raw, err, &want)
			}
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("%x: %v is not %v", raw, err, ErrDamaged)
			}
			return
		}
		if wantErr != nil {
			return // unknown fields are looked at less closely here
		}
		want.ProtoReflect().SetUnknown(nil)
		if !proto.Equal(got.KeyValue(), &want) {
			t.Fatalf("%x: %v, protobuf reads %v", raw, got.KeyValue(), &want)
		}
	})
}
