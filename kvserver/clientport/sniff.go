package clientport

import (
	"io"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// maxStart bounds what is kept of a connection while it is not known to be
// gRPC, in bytes, and maxStartFrame one frame of that.
const (
	maxStart      = 64 << 10
	maxStartFrame = 16 << 10
)

// isGRPC reads the start of a connection up to the first request, and tells
// whether that is for gRPC; it is a cmux.MatchWriter. It sends SETTINGS, which
// some clients wait for before they ask for anything.
//
// A client of gRPC may connect long before its first request, and send pings
// meanwhile that want an answer. So whoever does that is left to the gRPC server,
// as is whoever sends too much before a request: the rest of the stream must not
// be gathered here.
func isGRPC(w io.Writer, r io.Reader) bool {
	start := &io.LimitedReader{R: r, N: maxStart}
	if !startsHTTP2(start) {
		return false
	}
	if conn, ok := w.(*openingConn); ok {
		conn.showed() // an idle client is a good one from here on
	}
	framer := http2.NewFramer(w, start)
	framer.SetMaxReadFrameSize(maxStartFrame)
	fields := newHeaderReader()
	greeted := false
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return start.N <= 0 // else the connection has ended
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if greeted || frame.IsAck() {
				continue
			}
			greeted = true
			if framer.WriteSettings() != nil {
				return false
			}
		case *http2.HeadersFrame:
			if fields.read(frame.HeaderBlockFragment()) || frame.HeadersEnded() {
				return fields.grpc
			}
		case *http2.ContinuationFrame:
			if fields.read(frame.HeaderBlockFragment()) || frame.HeadersEnded() {
				return fields.grpc
			}
		case *http2.PingFrame, *http2.DataFrame, *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return true
		}
	}
}

func startsHTTP2(r io.Reader) bool {
	var start [len(http2.ClientPreface)]byte
	for read := 0; read < len(start); {
		n, err := r.Read(start[read:])
		read += n
		if string(start[:read]) != http2.ClientPreface[:read] || err != nil {
			return false
		}
	}
	return true
}

// headerReader looks for the content type in a block of header fields.
type headerReader struct {
	decoder *hpack.Decoder
	found   bool
	grpc    bool
}

func newHeaderReader() *headerReader {
	h := &headerReader{}
	h.decoder = hpack.NewDecoder(4<<10, func(field hpack.HeaderField) {
		if field.Name == "content-type" {
			h.found, h.grpc = true, strings.HasPrefix(field.Value, "application/grpc")
		}
	})
	h.decoder.SetMaxStringLength(maxStart)
	return h
}

// read reports whether nothing more needs to be read.
func (h *headerReader) read(fragment []byte) bool {
	_, err := h.decoder.Write(fragment)
	return h.found || err != nil
}
