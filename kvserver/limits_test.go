package kvserver

import (
	"bytes"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// A limit is where the flag says, and what goes beyond is refused in etcd's
// words.
func TestLimitsOfRequests(t *testing.T) {
	config := single(t)
	config.MaxRequestBytes, config.MaxTxnOps = 1000, 2
	client := connect(t, running(t, config).clients[0].Addr().String())
	kv := pb.NewKVClient(client.conn)
	put := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("k")}}}
	get := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("k")}}}
	for name, test := range map[string]struct {
		run  func() error
		want error
	}{
		"small enough": {func() error {
			_, err := kv.Put(t.Context(), &pb.PutRequest{Key: []byte("k"), Value: make([]byte, 800)})
			return err
		}, nil},
		"too large": {func() error {
			_, err := kv.Put(t.Context(), &pb.PutRequest{Key: []byte("k"), Value: make([]byte, 1001)})
			return err
		}, rpctypes.ErrGRPCRequestTooLarge},
		"few enough": {func() error {
			_, err := kv.Txn(t.Context(), &pb.TxnRequest{Success: []*pb.RequestOp{put, get}})
			return err
		}, nil},
		"too many": {func() error {
			_, err := kv.Txn(t.Context(), &pb.TxnRequest{Success: []*pb.RequestOp{get, get, get}})
			return err
		}, rpctypes.ErrGRPCTooManyOps},
	} {
		if err := test.run(); status.Convert(err).Message() != status.Convert(test.want).Message() || status.Code(err) != status.Code(test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	huge := metadata.AppendToOutgoingContext(t.Context(), "token", strings.Repeat("x", 2<<20))
	if _, err := kv.Range(huge, &pb.RangeRequest{Key: []byte("k")}); status.Code(err) == codes.OK || status.Code(err) == codes.Unknown {
		t.Errorf("a header of 2 MiB: %v", err)
	}
	if _, err := kv.Range(t.Context(), &pb.RangeRequest{Key: []byte("k")}); err != nil {
		t.Errorf("after it: %v", err)
	}
}

// A client that does not keep to the number of streams it was told is refused
// what is beyond.
func TestLimitOfStreams(t *testing.T) {
	config := single(t)
	config.MaxConcurrentStreams = 2
	conn, err := net.Dial("tcp", running(t, config).clients[0].Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(conn, conn)
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, field := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", pb.Watch_Watch_FullMethodName}, {":authority", "x"},
		{"content-type", "application/grpc"}, {"te", "trailers"},
	} {
		if err := encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]}); err != nil {
			t.Fatal(err)
		}
	}
	for stream := range uint32(3) {
		if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*stream + 1, BlockFragment: block.Bytes(), EndHeaders: true}); err != nil {
			t.Fatal(err)
		}
	}
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if reset, ok := frame.(*http2.RSTStreamFrame); ok {
			if reset.StreamID != 5 || reset.ErrCode != http2.ErrCodeRefusedStream {
				t.Errorf("%v", reset)
			}
			return
		}
	}
}
