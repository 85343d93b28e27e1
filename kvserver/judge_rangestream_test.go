package kvserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// streamOf puts the messages of a stream together: the last one has everything
// but the keys, the others have nothing else.
func streamOf(name string, r *pb.RangeRequest) call {
	return call{name, func(ctx context.Context, conn *grpc.ClientConn) (proto.Message, error) {
		stream, err := pb.NewKVClient(conn).RangeStream(ctx, r)
		if err != nil {
			return nil, err
		}
		whole := &pb.RangeResponse{}
		for {
			message, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				if whole.GetHeader() == nil {
					return nil, errors.New("the last message has no header")
				}
				return whole, nil
			}
			if err != nil {
				return nil, err
			}
			part := message.GetRangeResponse()
			if whole.GetHeader() != nil || part.GetHeader() == nil && (part.GetCount() != 0 || part.GetMore()) {
				return nil, errors.New("what belongs into the last message came earlier")
			}
			whole.Header, whole.Count, whole.More = part.GetHeader(), part.GetCount(), part.GetMore()
			whole.Kvs = append(whole.Kvs, part.GetKvs()...)
		}
	}}
}

func TestRangeStreamsAreEtcds(t *testing.T) {
	etcd, ours := bothSides(t)
	k := func(text string) []byte { return []byte(text) }
	list := []call{streamOf("nothing", &pb.RangeRequest{Key: k("a"), RangeEnd: k("b")})}
	for i := range 40 {
		// Values grow past what one message has.
		list = append(list, put(fmt.Sprint("put ", i), &pb.PutRequest{Key: fmt.Appendf(nil, "s%02d", i), Value: k(strings.Repeat("v", i*i*100))}))
	}
	list = append(list, grant("grant", 5, 1000), put("put with a lease", &pb.PutRequest{Key: k("s05"), Value: k("leased"), Lease: 5}), deletion("delete", &pb.DeleteRangeRequest{Key: k("s07")}))
	for name, r := range map[string]*pb.RangeRequest{
		"one key":                   {Key: k("s01")},
		"a key that is not":         {Key: k("x")},
		"everything":                {Key: k("\x00"), RangeEnd: k("\x00")},
		"serializable":              {Key: k("s"), RangeEnd: k("t"), Serializable: true},
		"a prefix":                  {Key: k("s1"), RangeEnd: k("s2")},
		"end before start":          {Key: k("t"), RangeEnd: k("s")},
		"keys only":                 {Key: k("s"), RangeEnd: k("t"), KeysOnly: true},
		"count only":                {Key: k("s"), RangeEnd: k("t"), CountOnly: true},
		"count only with a limit":   {Key: k("s"), RangeEnd: k("t"), CountOnly: true, Limit: 3},
		"limit 1":                   {Key: k("s"), RangeEnd: k("t"), Limit: 1},
		"limit 10":                  {Key: k("s"), RangeEnd: k("t"), Limit: 10},
		"limit 25":                  {Key: k("s"), RangeEnd: k("t"), Limit: 25},
		"limit of exactly as many":  {Key: k("s"), RangeEnd: k("t"), Limit: 39},
		"limit above":               {Key: k("s"), RangeEnd: k("t"), Limit: 1000},
		"negative limit":            {Key: k("s"), RangeEnd: k("t"), Limit: -1},
		"limit with one key":        {Key: k("s01"), Limit: 1},
		"an old revision":           {Key: k("s"), RangeEnd: k("t"), Revision: 20},
		"an old revision, limited":  {Key: k("s"), RangeEnd: k("t"), Revision: 20, Limit: 5},
		"a negative revision":       {Key: k("s"), RangeEnd: k("t"), Revision: -7},
		"a revision to come":        {Key: k("s"), RangeEnd: k("t"), Revision: 1000},
		"no key":                    {RangeEnd: k("t")},
		"ascending by key":          {Key: k("s"), RangeEnd: k("t"), SortOrder: pb.RangeRequest_ASCEND},
		"descending":                {Key: k("s"), RangeEnd: k("t"), SortOrder: pb.RangeRequest_DESCEND},
		"by value":                  {Key: k("s"), RangeEnd: k("t"), SortOrder: pb.RangeRequest_ASCEND, SortTarget: pb.RangeRequest_VALUE},
		"an order that is not":      {Key: k("s"), SortOrder: 9},
		"a target that is not":      {Key: k("s"), SortTarget: 9},
		"lowest mod revision":       {Key: k("s"), RangeEnd: k("t"), MinModRevision: 3},
		"highest mod revision":      {Key: k("s"), RangeEnd: k("t"), MaxModRevision: 3},
		"lowest creation revision":  {Key: k("s"), RangeEnd: k("t"), MinCreateRevision: 3},
		"highest creation revision": {Key: k("s"), RangeEnd: k("t"), MaxCreateRevision: 3},
	} {
		list = append(list, streamOf(name, r))
	}
	list = append(list, compact("compact", &pb.CompactionRequest{Revision: 20}),
		streamOf("compacted", &pb.RangeRequest{Key: k("s"), RangeEnd: k("t"), Revision: 19}),
		streamOf("the compacted revision itself", &pb.RangeRequest{Key: k("s"), RangeEnd: k("t"), Revision: 20}))
	for _, c := range list {
		t.Run(c.name, func(t *testing.T) { compareAnswers(t, etcd, ours, c) })
	}
}

// A stream shows one revision although keys are written between its messages,
// and no message is much larger than a chunk.
func TestRangeStreamIsPinnedAndBounded(t *testing.T) {
	_, ours := bothSides(t)
	client := pb.NewKVClient(ours.conn)
	const keys, size = 60, 256 << 10
	for i := range keys {
		if _, err := client.Put(t.Context(), &pb.PutRequest{Key: fmt.Appendf(nil, "k%03d", i), Value: make([]byte, size)}); err != nil {
			t.Fatal(err)
		}
	}
	stream, err := client.RangeStream(t.Context(), &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l")})
	if err != nil {
		t.Fatal(err)
	}
	seen, messages := 0, 0
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if messages++; messages == 1 {
			if _, err := client.Put(t.Context(), &pb.PutRequest{Key: []byte("kz")}); err != nil {
				t.Fatal(err)
			}
			if _, err := client.DeleteRange(t.Context(), &pb.DeleteRangeRequest{Key: []byte("k059")}); err != nil {
				t.Fatal(err)
			}
		}
		if got := proto.Size(message); got > 1<<20+size+4096 {
			t.Errorf("message %d has %d bytes", messages, got)
		}
		part := message.GetRangeResponse()
		for _, kv := range part.GetKvs() {
			if want := fmt.Sprintf("k%03d", seen); string(kv.GetKey()) != want {
				t.Fatalf("key %s, want %s", kv.GetKey(), want)
			}
			seen++
		}
		if header := part.GetHeader(); header != nil && (header.GetRevision() != keys+1 || part.GetCount() != keys || part.GetMore()) {
			t.Errorf("revision %d, count %d, more %v", header.GetRevision(), part.GetCount(), part.GetMore())
		}
	}
	if seen != keys || messages < 10 {
		t.Errorf("%d keys in %d messages, want %d in at least 10", seen, messages, keys)
	}
}
