package kvserver

import (
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestAutomaticCompaction has both servers forget what is older than a second,
// and keep what is the present.
func TestAutomaticCompaction(t *testing.T) {
	etcd, ours := bothSidesWith(t, func(etcd *embed.Config, ours *Config) {
		etcd.AutoCompactionMode, etcd.AutoCompactionRetention = "periodic", "1s"
		ours.AutoCompactionMode, ours.AutoCompactionRetention = "periodic", "1s"
	})
	for _, s := range []side{etcd, ours} {
		keys := pb.NewKVClient(s.conn)
		for range 3 {
			must(t, s, keys.Put, &pb.PutRequest{Key: []byte("a"), Value: []byte("1")})
		}
		within(t, 30*time.Second, s.url+" compacts revision 3", func() bool {
			_, err := keys.Range(t.Context(), &pb.RangeRequest{Key: []byte("a"), Revision: 3})
			return status.Code(err) == codes.OutOfRange
		})
		if got := must(t, s, keys.Range, &pb.RangeRequest{Key: []byte("a"), Revision: 4}); len(got.Kvs) != 1 || got.Header.Revision != 4 {
			t.Errorf("%s: at the last revision %v", s.url, got)
		}
	}
}
