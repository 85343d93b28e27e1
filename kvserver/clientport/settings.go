package clientport

import (
	"bufio"
	"encoding/binary"
	"net"

	"golang.org/x/net/http2"
)

const (
	frameHeaderBytes = 9 // RFC 9113, 4.1
	http2Start       = "PRI"
)

// settledConn takes out of a client's HTTP/2 stream the acknowledgement of the
// SETTINGS that cmux sent to make the client talk. The HTTP server has not sent
// those, and answers an acknowledgement too many with PROTOCOL_ERROR; gRPC's
// server ignores it. Streams of HTTP/1 pass unchanged.
type settledConn struct {
	net.Conn
	from    *bufio.Reader
	started bool
	passing int // bytes of the preface or a frame that are still to pass
	settled bool
}

func newSettledConn(conn net.Conn) *settledConn {
	return &settledConn{Conn: conn, from: bufio.NewReader(conn)}
}

func (c *settledConn) Read(p []byte) (int, error) {
	for !c.settled && c.passing == 0 {
		if err := c.next(); err != nil {
			return 0, err
		}
	}
	if c.settled && c.passing == 0 {
		return c.from.Read(p)
	}
	n, err := c.from.Read(p[:min(len(p), c.passing)])
	c.passing -= n
	return n, err
}

// next decides about the frame that follows.
func (c *settledConn) next() error {
	if !c.started {
		c.started = true
		start, err := c.from.Peek(len(http2Start))
		if err != nil {
			return err
		}
		if c.settled = string(start) != http2Start; !c.settled {
			c.passing = len(http2.ClientPreface)
		}
		return nil
	}
	header, err := c.from.Peek(frameHeaderBytes)
	if err != nil {
		return err
	}
	if http2.FrameType(header[3]) == http2.FrameSettings && http2.Flags(header[4]).Has(http2.FlagSettingsAck) {
		c.settled = true
		_, err = c.from.Discard(frameHeaderBytes)
		return err
	}
	c.passing = frameHeaderBytes + int(binary.BigEndian.Uint32(header)>>8)
	return nil
}
