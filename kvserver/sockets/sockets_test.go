package sockets

import (
	"net"
	"strings"
	"testing"
)

func listen(t *testing.T, s *Sockets, address string) net.Listener {
	t.Helper()
	listener, err := s.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	return listener
}

func TestPortIsShared(t *testing.T) {
	shared := New(Options{ReusePort: true})
	address := listen(t, shared, "127.0.0.1:0").Addr().String()
	listen(t, shared, address)
	if _, err := New(Options{}).Listen("tcp", address); err == nil {
		t.Error("a port was shared without being asked to")
	}
}

func TestInheritedSockets(t *testing.T) {
	open := listen(t, New(Options{}), "127.0.0.1:0")
	other := listen(t, New(Options{}), "127.0.0.1:0")
	s := New(Options{Inherited: []net.Listener{open, nil, other}})
	if got := listen(t, s, open.Addr().String()); got != open {
		t.Error("a socket that is open is opened again")
	}
	listen(t, s, "127.0.0.1:0")
	if err := s.Close(); err == nil || !strings.Contains(err.Error(), "the socket "+other.Addr().String()+" was handed over") {
		t.Errorf("a socket that nobody wants is closed with %v", err)
	}
	if _, err := other.Accept(); err == nil {
		t.Error("it is open")
	}
	if err := s.Close(); err != nil {
		t.Errorf("closed again: %v", err)
	}
}
