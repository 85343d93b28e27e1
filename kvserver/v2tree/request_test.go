package v2tree

import (
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"muster/kvserver/v2tree/v2pb"
)

// TestWrap: a request survives the way through the log, beside the header that
// it gets there; one of version 3 is none.
func TestWrap(t *testing.T) {
	exists := true
	want := &v2pb.Request{Method: v2pb.Request_PUT, Path: []byte("/1/\xff"), Value: []byte("\x00"), PrevExist: &exists, Expires: -1}
	wrapped, err := Wrap(want)
	if err != nil {
		t.Fatal(err)
	}
	wrapped.Header = &pb.RequestHeader{ID: 7, Username: "somebody"}
	encoded, err := proto.Marshal(wrapped)
	if err != nil {
		t.Fatal(err)
	}
	decoded := &pb.InternalRaftRequest{}
	if err := proto.Unmarshal(encoded, decoded); err != nil {
		t.Fatal(err)
	}
	if got := Unwrap(decoded); !proto.Equal(got, want) || decoded.GetHeader().GetID() != 7 {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := Unwrap(&pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte("key")}}); got != nil {
		t.Errorf("a put is %v", got)
	}
}

// FuzzUnwrap: whatever the log holds is read without a panic.
func FuzzUnwrap(f *testing.F) {
	for _, seed := range [][]byte{nil, {0x12}, {0x12, 2, 8, 1}, {0x12, 0xff}, {0x7a, 0, 0x12, 0}, {0x10, 1, 0x12, 0}} {
		f.Add(seed)
	}
	f.Fuzz(func(_ *testing.T, encoded []byte) {
		r := &pb.InternalRaftRequest{}
		if proto.Unmarshal(encoded, r) == nil {
			_ = Unwrap(r)
		}
	})
}
