package v2tree

import (
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"muster/kvserver/v2tree/v2pb"
)

// requestField is where etcd's InternalRaftRequest had the requests of version
// 2. Nothing else will ever be there.
const requestField protowire.Number = 2

// Wrap makes a request one that the log takes.
func Wrap(r *v2pb.Request) (*pb.InternalRaftRequest, error) {
	encoded, err := proto.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode a request of version 2: %w", err)
	}
	wrapped := &pb.InternalRaftRequest{}
	field := protowire.AppendTag(nil, requestField, protowire.BytesType)
	wrapped.ProtoReflect().SetUnknown(protowire.AppendBytes(field, encoded))
	return wrapped, nil
}

// Unwrap returns the request of version 2 that is in one from the log; nil when
// there is none, or none that can be read.
func Unwrap(wrapped *pb.InternalRaftRequest) *v2pb.Request {
	for rest := []byte(wrapped.ProtoReflect().GetUnknown()); len(rest) > 0; {
		number, kind, n := protowire.ConsumeTag(rest)
		if n < 0 {
			return nil
		}
		rest = rest[n:]
		if number == requestField && kind == protowire.BytesType {
			encoded, n := protowire.ConsumeBytes(rest)
			r := &v2pb.Request{}
			if n < 0 || proto.Unmarshal(encoded, r) != nil {
				return nil
			}
			return r
		}
		if n = protowire.ConsumeFieldValue(number, kind, rest); n < 0 {
			return nil
		}
		rest = rest[n:]
	}
	return nil
}
