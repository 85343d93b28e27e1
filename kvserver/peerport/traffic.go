package peerport

import "net"

// Counter adds up bytes.
type Counter = interface{ Add(bytes float64) }

// countedConn counts what goes through an admitted connection.
type countedConn struct {
	net.Conn
	sent, received Counter
}

func (p *Port) counted(conn net.Conn, member uint64) net.Conn {
	if p.config.Traffic == nil {
		return conn
	}
	sent, received := p.config.Traffic(member)
	return &countedConn{conn, sent, received}
}

// Read implements net.Conn.
func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.received.Add(float64(n))
	return n, err
}

// Write implements net.Conn.
func (c *countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.sent.Add(float64(n))
	return n, err
}
