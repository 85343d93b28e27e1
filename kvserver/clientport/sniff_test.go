package clientport

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// dialRaw connects without TLS and has patience.
func dialRaw(t *testing.T, port *Port) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", port.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func expectClosed(t *testing.T, conn net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, conn); err != nil {
		t.Errorf("the connection ends with %v, want it closed", err)
	}
}

// Clients that begin and never come to the point are not waited for.
func TestUnfinishedStartsAreEnded(t *testing.T) {
	port := start(t, nil, 300*time.Millisecond)
	for name, begun := range map[string]string{
		"a letter":           "G",
		"half a request":     "GET / HTTP/1.1\r\nHost: x\r\n",
		"half the preface":   "PRI * HTTP/2.0",
		"no letter of HTTP":  "\x00",
		"a header, slowly":   "GET /health HTTP/1.1\r\nX: ",
		"another's preface?": "PRI * HTTP/3.0\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			conn := dialRaw(t, port)
			if _, err := io.WriteString(conn, begun); err != nil {
				t.Fatal(err)
			}
			expectClosed(t, conn)
		})
	}
}

// dribble sends a byte now and then until the other side has had enough.
func TestDribbledHeaderIsEnded(t *testing.T) {
	port := start(t, nil, 300*time.Millisecond)
	conn := dialRaw(t, port)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, conn)
	}()
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nX: "); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		select {
		case <-ended:
			return
		case <-time.After(20 * time.Millisecond):
			_, _ = io.WriteString(conn, "x")
		}
	}
	t.Error("a header may take for ever")
}

// framing speaks HTTP/2 by hand.
func framing(t *testing.T, port *Port) *http2.Framer {
	t.Helper()
	conn := dialRaw(t, port)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(conn, conn)
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return framer
}

func awaitFrame(t *testing.T, framer *http2.Framer, want func(http2.Frame) bool) {
	t.Helper()
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			t.Fatalf("the connection ends with %v", err)
		}
		if want(frame) {
			return
		}
	}
}

// A client that pings before it asks for anything, as gRPC's may, is answered.
func TestPingBeforeTheFirstRequest(t *testing.T) {
	framer := framing(t, start(t, nil, 0))
	if err := framer.WritePing(false, [8]byte{1}); err != nil {
		t.Fatal(err)
	}
	awaitFrame(t, framer, func(frame http2.Frame) bool {
		ping, ok := frame.(*http2.PingFrame)
		return ok && ping.IsAck() && ping.Data == [8]byte{1}
	})
}

// Frames without a request are not gathered without bound: the gRPC server gets
// them, and answers.
func TestFramesWithoutARequest(t *testing.T) {
	framer := framing(t, start(t, nil, 0))
	const many = maxStart/frameHeaderBytes + 100
	go func() {
		for range many {
			if framer.WriteWindowUpdate(0, 1) != nil {
				return
			}
		}
		_ = framer.WritePing(false, [8]byte{2})
	}()
	awaitFrame(t, framer, func(frame http2.Frame) bool {
		ping, ok := frame.(*http2.PingFrame)
		return ok && ping.IsAck()
	})
}

// A header that does not fit is refused, and delays nobody.
func TestHugeFirstHeader(t *testing.T) {
	port := start(t, nil, 0)
	framer := framing(t, port)
	var block []byte
	for range 64 {
		block = hpack.AppendHuffmanString(append(block, 0x00), "x") // a literal field without indexing
		block = append(block, make([]byte, 1024)...)
	}
	for i := 0; i < len(block); i += maxStartFrame {
		end := min(i+maxStartFrame, len(block))
		var err error
		if i == 0 {
			err = framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[i:end]})
		} else {
			err = framer.WriteContinuation(1, false, block[i:end])
		}
		if err != nil {
			break // it has been refused already
		}
	}
	for {
		if _, err := framer.ReadFrame(); err != nil {
			break
		}
	}
	checkGRPC(t, dialGRPC(t, port, nil))
}

// serve runs a port that is not for everything.
func serve(t *testing.T, handler http.Handler, withGRPC bool) *Port {
	t.Helper()
	port, err := Listen("127.0.0.1:0", Config{Handler: handler, OpenTimeout: time.Second, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	var server *grpc.Server
	if withGRPC {
		server = grpc.NewServer()
		healthpb.RegisterHealthServer(server, health.NewServer())
	}
	served := make(chan error, 1)
	go func() { served <- port.Serve(server) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = port.Close(ctx)
		if server != nil {
			server.Stop()
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return port
}

func TestPortsForOneProtocol(t *testing.T) {
	grpcOnly := serve(t, nil, true)
	checkGRPC(t, dialGRPC(t, grpcOnly, nil))
	client, url := httpClient(grpcOnly, nil, "HTTP/1.1")
	if response, err := client.Get(url); err == nil {
		_ = response.Body.Close()
		t.Error("HTTP is served where only gRPC is to be")
	}
	httpOnly := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) }), false)
	checkHTTP(t, httpOnly, nil, "HTTP/1.1")
	checkHTTP(t, httpOnly, nil, "HTTP/2.0")
	conn := dialGRPC(t, httpOnly, nil)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}); err == nil {
		t.Error("gRPC is served where only HTTP is to be")
	}
}

// A connection too many waits until there is room.
func TestConnectionsAreBounded(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) })
	port, err := Listen("127.0.0.1:0", Config{Handler: handler, MaxConns: 1, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = port.Serve(nil) }()
	t.Cleanup(func() { _ = port.Close(context.Background()) })
	first := dialRaw(t, port)
	if _, err := io.WriteString(first, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	client, url := httpClient(port, nil, "HTTP/1.1")
	defer client.CloseIdleConnections()
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		get(t, client, url, "HTTP/1.1")
	}()
	select {
	case <-answered:
		t.Error("two connections at a time")
	case <-time.After(50 * time.Millisecond):
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	<-answered
}

// Frames about priorities, and of kinds that nobody knows, mean nothing yet: some
// browsers send them before the first request.
func TestFramesBeforeARequest(t *testing.T) {
	framer := framing(t, start(t, nil, 0))
	for kind, payload := range map[http2.FrameType]string{0x10: "\x00\x00\x00\x01u=3", 0xbe: "grease"} {
		if err := framer.WriteRawFrame(kind, 0, 0, []byte(payload)); err != nil {
			t.Fatal(err)
		}
	}
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, field := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":path", "/"}, {":authority", "x"}} {
		if err := encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]}); err != nil {
			t.Fatal(err)
		}
	}
	if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true}); err != nil {
		t.Fatal(err)
	}
	awaitFrame(t, framer, func(frame http2.Frame) bool {
		data, ok := frame.(*http2.DataFrame)
		return ok && string(data.Data()) == "HTTP/2.0"
	})
}
