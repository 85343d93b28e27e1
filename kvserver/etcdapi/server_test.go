package etcdapi

import (
	"testing"

	"google.golang.org/grpc/encoding"
)

// The server understands clients that compress their requests; in tests beside
// etcd the decompressor is there because of etcd.
func TestRequestsMayBeCompressed(t *testing.T) {
	if encoding.GetCompressor("gzip") == nil {
		t.Error("there is no gzip")
	}
}
