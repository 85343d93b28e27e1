package replica

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"muster/kvserver/internal/loopback"
	"muster/kvserver/peerport"
)

// Heartbeats must reach raft through its main loop: a handler that runs beside
// it lets a deposed leader stamp entries with another leader's term.
func TestHeartbeatsGoThroughTheMainLoop(t *testing.T) {
	logger := testLogger(t, "transport")
	open := func(member uint64) *transport {
		port, err := peerport.Listen([]string{loopback.Address(t)}, peerport.Config{Cluster: 1, Member: member, Logger: logger})
		if err != nil {
			t.Fatal(err)
		}
		tr := newTransport(port, func(raft.ServerAddress) (uint64, error) { return 1, nil }, hashicorpLogger("raft-net", logger), func() bool { return false })
		t.Cleanup(func() {
			_ = tr.shut()
			_ = port.Close()
		})
		return tr
	}
	receiver, sender := open(1), open(2)
	beside := make(chan raft.RPC, 1)
	receiver.SetHeartbeatHandler(func(rpc raft.RPC) {
		beside <- rpc
		rpc.Respond(&raft.AppendEntriesResponse{}, nil)
	})
	sent := make(chan error, 1)
	go func() {
		heartbeat := &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, Addr: []byte(sender.LocalAddr())}, Term: 1}
		sent <- sender.AppendEntries(serverID(1), receiver.LocalAddr(), heartbeat, &raft.AppendEntriesResponse{})
	}()
	select {
	case rpc := <-receiver.Consumer():
		rpc.Respond(&raft.AppendEntriesResponse{}, nil)
	case <-beside:
		t.Error("a heartbeat was handled beside raft's main loop")
	case <-time.After(patience):
		t.Fatal("no heartbeat arrived")
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

func TestServerIDs(t *testing.T) {
	for _, member := range []uint64{1, 0xabcdef, 1<<64 - 1} {
		if got, err := memberID(serverID(member)); err != nil || got != member {
			t.Errorf("%x becomes %x, %v", member, got, err)
		}
	}
	if _, err := memberID("m0"); err == nil {
		t.Error("m0 is taken for a member id")
	}
}
