package replica

import (
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"muster/kvserver/internal/loopback"
	"muster/kvserver/metrics"
	"muster/kvserver/peerport"
)

func openTransport(t *testing.T, member uint64, logger *slog.Logger) *transport {
	t.Helper()
	port, err := peerport.Listen([]string{loopback.Address(t)}, peerport.Config{Cluster: 1, Member: member, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	tr := newTransport(port, member, metrics.NewReplica(nil), hashicorpLogger("raft-net", logger), func() bool { return false }, func(uint64) error { return nil })
	t.Cleanup(func() {
		_ = tr.shut()
		_ = port.Close()
	})
	return tr
}

// Outside of a pipeline, too, an answer about entries is shown when the leader
// has them on its own disk, and one about none at once.
func TestAnswersWaitForTheOwnDisk(t *testing.T) {
	logger := testLogger(t, "transport")
	receiver, sender := openTransport(t, 1, logger), openTransport(t, 2, logger)
	disk := make(chan struct{})
	sender.durable = func(index uint64) error {
		if index != 7 {
			t.Errorf("entry %d is waited for", index)
		}
		<-disk
		return nil
	}
	target := place{peerURLs: []string{"http://" + string(receiver.NetworkTransport.LocalAddr())}}.address()
	send := func(entries ...*raft.Log) <-chan struct{} {
		return background(func() {
			request := &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, Addr: []byte(sender.LocalAddr())}, Term: 1, Entries: entries}
			if err := sender.AppendEntries(serverID(1), target, request, &raft.AppendEntriesResponse{}); err != nil {
				t.Error(err)
			}
		})
	}
	answer := func() {
		select {
		case rpc := <-receiver.Consumer():
			rpc.Respond(&raft.AppendEntriesResponse{Success: true}, nil)
		case <-time.After(patience):
			t.Error("nothing arrived")
		}
	}
	sent := send()
	answer()
	within(t, "an answer about no entries", sent)
	sent = send(&raft.Log{Index: 6, Term: 1}, &raft.Log{Index: 7, Term: 1})
	answer()
	if isDone(sent) {
		t.Error("the answer did not wait")
	}
	close(disk)
	within(t, "the answer", sent)
}

// Heartbeats must reach raft through its main loop: a handler that runs beside
// it lets a deposed leader stamp entries with another leader's term.
func TestHeartbeatsGoThroughTheMainLoop(t *testing.T) {
	logger := testLogger(t, "transport")
	receiver, sender := openTransport(t, 1, logger), openTransport(t, 2, logger)
	beside := make(chan raft.RPC, 1)
	receiver.SetHeartbeatHandler(func(rpc raft.RPC) {
		beside <- rpc
		rpc.Respond(&raft.AppendEntriesResponse{}, nil)
	})
	target := place{peerURLs: []string{"http://127.0.0.1:1", "http://" + string(receiver.NetworkTransport.LocalAddr())}}.address()
	sent := make(chan error, 1)
	go func() {
		heartbeat := &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, Addr: []byte(sender.LocalAddr())}, Term: 1}
		sent <- sender.AppendEntries(serverID(1), target, heartbeat, &raft.AppendEntriesResponse{})
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

// A member that was down gets what is for it as soon as it is back, unless that
// is of no use any more.
func TestEntriesAreSentAgain(t *testing.T) {
	logger := testLogger(t, "transport")
	listen := func(address string, member uint64) *transport {
		port, err := peerport.Listen([]string{address}, peerport.Config{Cluster: 1, Member: member, Logger: logger})
		if err != nil {
			t.Fatal(err)
		}
		tr := newTransport(port, member, metrics.NewReplica(nil), hashicorpLogger("raft-net", logger), func() bool { return false }, func(uint64) error { return nil })
		t.Cleanup(func() {
			_ = tr.shut()
			_ = port.Close()
		})
		return tr
	}
	sender, address := listen("127.0.0.1:0", 2), loopback.Address(t)
	target := place{peerURLs: []string{"http://" + address}}.address()
	request := &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}, Term: 7, PrevLogEntry: 1, PrevLogTerm: 1}
	if err := sender.AppendEntries(serverID(1), target, request, &raft.AppendEntriesResponse{}); err == nil {
		t.Error("out of date, and nobody there: no error")
	}
	asked := make(chan uint64, 100)
	sender.current = func(term uint64, id raft.ServerID, at raft.ServerAddress) bool {
		if id != serverID(1) || at != target {
			t.Errorf("asked about %s at %s", id, at)
		}
		select {
		case asked <- term:
		default:
		}
		return true
	}
	sent := make(chan error, 1)
	go func() { sent <- sender.AppendEntries(serverID(1), target, request, &raft.AppendEntriesResponse{}) }()
	for range 2 { // it has failed twice
		if term := <-asked; term != 7 {
			t.Errorf("asked about term %d", term)
		}
	}
	if err := sender.AppendEntries(serverID(1), target, &raft.AppendEntriesRequest{Term: 7}, &raft.AppendEntriesResponse{}); err == nil {
		t.Error("a sign of life to nobody: no error")
	}
	receiver := listen(address, 1)
	select {
	case rpc := <-receiver.Consumer():
		rpc.Respond(&raft.AppendEntriesResponse{}, nil)
	case err := <-sent:
		t.Fatalf("given up: %v", err)
	case <-time.After(patience):
		t.Fatal("nothing arrived")
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}

	stopped := make(chan struct{})
	sender.stopped = stopped
	nowhere := place{peerURLs: []string{"http://" + loopback.Address(t)}}.address()
	sender.current = func(uint64, raft.ServerID, raft.ServerAddress) bool { return true }
	go func() { sent <- sender.AppendEntries(serverID(1), nowhere, request, &raft.AppendEntriesResponse{}) }()
	close(stopped)
	if err := <-sent; err == nil {
		t.Error("a member that stops goes on sending")
	}
}

// Members that listen on the same address, as 0.0.0.0:2380 is on every machine,
// are not the same candidate: raft would vote for both of them in one term.
func TestCandidatesAreToldApartByTheirIDs(t *testing.T) {
	logger := testLogger(t, "transport")
	port, err := peerport.Listen([]string{"127.0.0.1:0"}, peerport.Config{Cluster: 1, Member: 1, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	seen := map[string]bool{}
	for _, member := range []uint64{1, 2} {
		tr := newTransport(port, member, metrics.NewReplica(nil), hashicorpLogger("raft-net", logger), func() bool { return false }, func(uint64) error { return nil })
		defer tr.shut()
		seen[string(tr.EncodePeer(serverID(member), tr.LocalAddr()))] = true
		seen[string(tr.LocalAddr())] = true
	}
	if len(seen) != 2 || !seen["1"] || !seen["2"] {
		t.Errorf("two members call themselves %v", seen)
	}
}

func TestPlaces(t *testing.T) {
	for _, want := range []place{
		{peerURLs: []string{"http://a:1"}},
		{learner: true, peerURLs: []string{"https://10.0.0.1:2380", "https://[::1]:2380"}},
	} {
		got, err := placeOf(want.address())
		if err != nil || got.learner != want.learner || !slices.Equal(got.peerURLs, want.peerURLs) {
			t.Errorf("%+v becomes %+v, %v", want, got, err)
		}
		member, at, err := parseRoute(route(serverID(0xabc), want.address()))
		if err != nil || member != 0xabc || at.address() != want.address() {
			t.Errorf("the route to %+v leads to %x at %+v, %v", want, member, at, err)
		}
	}
	for _, bad := range []raft.ServerAddress{"", "127.0.0.1:2380", "voter", "king http://a:1"} {
		if got, err := placeOf(bad); err == nil {
			t.Errorf("%q is taken for %+v", bad, got)
		}
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
