package kvserver

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"muster/kvserver/internal/loopback"
)

// With ports of its own, HTTP leaves those of gRPC.
func TestHTTPOnPortsOfItsOwn(t *testing.T) {
	config := single(t)
	config.ListenClientHTTPURLs = []string{"http://" + loopback.Address(t)}
	server := running(t, config)
	shared := server.clients[0].Addr().String()
	client := connect(t, shared)
	if _, err := pb.NewKVClient(client.conn).Range(t.Context(), &pb.RangeRequest{Key: []byte("k")}); err != nil {
		t.Error(err)
	}
	plain := &http.Client{Timeout: 20 * time.Second}
	if response, err := plain.Get("http://" + shared + "/version"); err == nil {
		_ = response.Body.Close()
		t.Error("the port of gRPC serves HTTP")
	}
	if body := string(fetch(t, config.ListenClientHTTPURLs[0]+"/version")); !strings.Contains(body, "etcdserver") {
		t.Errorf("/version is %s", body)
	}
	response, err := plain.Post(config.ListenClientHTTPURLs[0]+"/v3/kv/range", "application/json", strings.NewReader(`{"key":"aw=="}`))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if body, err := io.ReadAll(response.Body); err != nil || response.StatusCode != http.StatusOK {
		t.Errorf("the gateway answers %s %s (%v)", response.Status, body, err)
	}
}

// A socket that systemd has opened is used for the URL with its address.
func TestSocketActivation(t *testing.T) {
	address := loopback.Address(t)
	socket, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	config := single(t)
	config.ListenClientURLs, config.Inherited = []string{"http://" + address}, []net.Listener{socket}
	running(t, config)
	fetch(t, "http://"+address+"/version")
}
