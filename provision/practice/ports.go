package practice

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// Ports are the four consecutive ports of one host.
type Ports struct {
	SSH     int `json:"ssh"`
	Client  int `json:"client"`
	Peer    int `json:"peer"`
	Metrics int `json:"metrics"`
}

func (p Ports) all() []int { return []int{p.SSH, p.Client, p.Peer, p.Metrics} }

func portBlock(first int) Ports {
	return Ports{SSH: first, Client: first + 1, Peer: first + 2, Metrics: first + 3}
}

// Blocks are taken from [firstPort, lastPort), below the range from which
// Linux takes the ports of outgoing connections.
const (
	firstPort = 10000
	lastPort  = 32000
	blockSize = 4
	attempts  = 200
)

// claimPorts opens the SSH port, on 127.0.0.1 and on address, and thereby
// claims the block. Other practice hosts cannot take it while the sockets are
// open, and whatever else listens on one of the ports is noticed here.
func claimPorts(address string, wanted Ports) (Ports, []net.Listener, error) {
	if wanted != (Ports{}) {
		listeners, err := openPorts(address, wanted)
		if err != nil {
			return Ports{}, nil, fmt.Errorf("take the ports of the last time: %w; start again with a fresh directory", err)
		}
		return wanted, listeners, nil
	}
	var err error
	for range attempts {
		p := portBlock(firstPort + blockSize*rand.IntN((lastPort-firstPort)/blockSize))
		var listeners []net.Listener
		if listeners, err = openPorts(address, p); err == nil {
			return p, listeners, nil
		}
	}
	return Ports{}, nil, fmt.Errorf("find four free ports on %s: %w", address, err)
}

func openPorts(address string, p Ports) ([]net.Listener, error) {
	addresses := []string{"127.0.0.1"}
	if address != addresses[0] {
		addresses = append(addresses, address)
	}
	var opened []net.Listener
	for _, a := range addresses {
		l, err := net.Listen("tcp", net.JoinHostPort(a, strconv.Itoa(p.SSH)))
		if err == nil {
			opened = append(opened, l)
			err = probePorts(a, p)
		}
		if err != nil {
			for _, l := range opened {
				err = errors.Join(err, l.Close())
			}
			return nil, err
		}
	}
	return opened, nil
}

// probePorts reports whether the server's ports can be listened on.
func probePorts(address string, p Ports) error {
	for _, port := range p.all()[1:] {
		l, err := net.Listen("tcp", net.JoinHostPort(address, strconv.Itoa(port)))
		if err != nil {
			return err
		}
		if err := l.Close(); err != nil {
			return err
		}
	}
	return nil
}
