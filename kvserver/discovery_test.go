package kvserver

import (
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"muster/kvserver/internal/loopback"
)

// Members find each other at a discovery service, which may be a member too,
// and need it no more once they have been founded.
func TestDiscoveryService(t *testing.T) {
	service, err := Start(single(t))
	if err != nil {
		t.Fatal(err)
	}
	endpoint := service.clients[0].Addr().String()
	if _, err := pb.NewKVClient(connect(t, endpoint).conn).Put(t.Context(), &pb.PutRequest{Key: []byte("/_etcd/registry/new-one/_config/size"), Value: []byte("2")}); err != nil {
		t.Fatal(err)
	}
	configs := make([]Config, 2)
	servers := make([]*Server, 2)
	started := make(chan error)
	for i, name := range []string{"a", "b"} {
		config := single(t)
		config.Name = name
		config.ListenPeerURLs = []string{"http://" + loopback.Address(t)}
		config.InitialAdvertisePeerURLs = config.ListenPeerURLs
		config.Discovery.Service.Endpoints, config.Discovery.Service.Token = []string{endpoint}, "new-one"
		configs[i] = config
		go func() {
			var err error
			servers[i], err = Start(config)
			started <- err
		}()
	}
	for range servers {
		if err := <-started; err != nil {
			t.Fatal(err)
		}
	}
	awaitMembers := func(server *Server) {
		t.Helper()
		select {
		case <-server.Ready():
		case <-time.After(60 * time.Second):
			t.Fatal("not ready")
		}
		if members := server.Replica().Machine().Members(); len(members) != 2 {
			t.Errorf("the members are %v", members)
		}
	}
	for _, server := range servers {
		awaitMembers(server)
	}
	if err := service.Close(); err != nil {
		t.Error(err)
	}
	if err := servers[0].Close(); err != nil {
		t.Error(err)
	}
	if servers[0], err = Start(configs[0]); err != nil {
		t.Fatal(err)
	}
	awaitMembers(servers[0])
	for _, server := range servers {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	}
}
