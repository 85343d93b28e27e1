package practice

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// notifySocket is the socket a unit of Type=notify reports to, sd_notify(3).
type notifySocket struct {
	conn  *net.UnixConn
	env   string        // for the unit
	ready chan struct{} // closed on READY=1
	text  func(string)  // gets STATUS=
}

// listenNotify opens a socket without a name in the file system where that
// exists, since a path may be longer than the 108 bytes a socket's may have.
func listenNotify(status func(string)) (*notifySocket, error) {
	name := "@muster-practice-" + rand.Text()
	if runtime.GOOS != "linux" {
		name = filepath.Join(os.TempDir(), name[1:])
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("open a notification socket: %w", err)
	}
	s := &notifySocket{conn: conn, env: "NOTIFY_SOCKET=" + name, ready: make(chan struct{}), text: status}
	go s.receive()
	return s, nil
}

func (s *notifySocket) receive() {
	buf := make([]byte, 4096)
	isReady := false
	for {
		n, err := s.conn.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(buf[:n])) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			switch {
			case key == "READY" && value == "1" && !isReady:
				isReady = true
				close(s.ready)
			case key == "STATUS":
				s.text(value)
			}
		}
	}
}

func (s *notifySocket) close() error { return s.conn.Close() }
