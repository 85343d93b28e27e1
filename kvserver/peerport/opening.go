package peerport

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

const (
	accepted      = "ok"
	refusedPrefix = "refused: "
	removedAnswer = "removed"
)

// opening is the first line of a connection:
// "protocol cluster from to\n", ids in hexadecimal.
type opening struct {
	protocol          Protocol
	cluster, from, to uint64
}

func (o opening) String() string {
	return fmt.Sprintf("%s %016x %016x %016x\n", o.protocol, o.cluster, o.from, o.to)
}

func parseOpening(text string) (opening, error) {
	var o opening
	var protocol string
	if _, err := fmt.Sscanf(text, "%s %x %x %x", &protocol, &o.cluster, &o.from, &o.to); err != nil {
		return o, errors.New("this is a muster peer port; the connection did not open with a muster protocol line")
	}
	o.protocol = Protocol(protocol)
	return o, nil
}

// readLine reads byte by byte: what follows the line belongs to the protocol.
func readLine(r io.Reader) (string, error) {
	line := make([]byte, 0, 128)
	var one [1]byte
	for len(line) < maxLine {
		if _, err := io.ReadFull(r, one[:]); err != nil {
			return "", fmt.Errorf("read the opening line: %w", err)
		}
		if one[0] == '\n' {
			return string(line), nil
		}
		line = append(line, one[0])
	}
	return "", fmt.Errorf("the opening line is longer than %d bytes", maxLine)
}

// queue is a net.Listener over connections that were admitted elsewhere.
type queue struct {
	addr       net.Addr
	conns      chan net.Conn
	portClosed <-chan struct{}
	closed     chan struct{}
	once       sync.Once
}

func newQueue(addr net.Addr, portClosed <-chan struct{}) *queue {
	return &queue{addr: addr, conns: make(chan net.Conn), portClosed: portClosed, closed: make(chan struct{})}
}

func (q *queue) push(conn net.Conn) {
	select {
	case q.conns <- conn:
	case <-q.closed:
		_ = conn.Close()
	case <-q.portClosed:
		_ = conn.Close()
	}
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case conn := <-q.conns:
		return conn, nil
	case <-q.closed:
		return nil, net.ErrClosed
	case <-q.portClosed:
		return nil, net.ErrClosed
	}
}

func (q *queue) Addr() net.Addr { return q.addr }

func (q *queue) Close() error {
	q.once.Do(func() { close(q.closed) })
	return nil
}
