package kvserver

import (
	"bytes"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// A gRPC path without its slash is no way past those who look at paths
// (CVE-2026-33186): it reaches no method.
func TestPathWithoutSlash(t *testing.T) {
	server := running(t, single(t))
	for path, want := range map[string]string{
		"/etcdserverpb.Maintenance/Status": "0",
		"etcdserverpb.Maintenance/Status":  "12", // Unimplemented
	} {
		if got := grpcStatus(t, server.clients[0].Addr().String(), path); got != want {
			t.Errorf("%s: gRPC status %q, want %q", path, got, want)
		}
	}
}

// grpcStatus calls the path with an empty message, frame by frame.
func grpcStatus(t *testing.T, address, path string) string {
	t.Helper()
	conn, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(conn.SetDeadline(time.Now().Add(20 * time.Second)))
	_, err = conn.Write([]byte(http2.ClientPreface))
	must(err)
	framer := http2.NewFramer(conn, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	must(framer.WriteSettings())
	var fields bytes.Buffer
	encoder := hpack.NewEncoder(&fields)
	for _, field := range []hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: path}, {Name: ":authority", Value: address},
		{Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"},
	} {
		must(encoder.WriteField(field))
	}
	must(framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: fields.Bytes(), EndHeaders: true}))
	must(framer.WriteData(1, true, make([]byte, 5)))
	for {
		frame, err := framer.ReadFrame()
		must(err)
		headers, ok := frame.(*http2.MetaHeadersFrame)
		if !ok {
			continue
		}
		for _, field := range headers.RegularFields() {
			if field.Name == "grpc-status" {
				return field.Value
			}
		}
	}
}
