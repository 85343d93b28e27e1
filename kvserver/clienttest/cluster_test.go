package clienttest

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"golang.org/x/crypto/bcrypt"

	"muster/kvserver"
	"muster/kvserver/internal/loopback"
)

// patience is how long anything may take on a machine that is busy.
const patience = time.Minute

var judge = flag.Bool("clienttest.judge", false, "run etcd instead, which has to pass all of this, too")

const size = 3

// cluster is three members that are ready.
type cluster struct{ endpoints []string }

// startJudge starts etcd, whose one member stands for three.
func startJudge(t *testing.T) *cluster {
	t.Helper()
	config := embed.NewConfig()
	config.Dir, config.LogLevel, config.UnsafeNoFsync = filepath.Join(t.TempDir(), "etcd"), "fatal", true
	config.BcryptCost = uint(bcrypt.MinCost)
	client, peer := url.URL{Scheme: "http", Host: loopback.Address(t)}, url.URL{Scheme: "http", Host: loopback.Address(t)}
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	etcd, err := embed.StartEtcd(config)
	check(t, err)
	t.Cleanup(etcd.Close)
	<-etcd.Server.ReadyNotify()
	return &cluster{slices.Repeat([]string{client.String()}, size)}
}

func startCluster(t *testing.T) *cluster {
	t.Helper()
	if *judge {
		return startJudge(t)
	}
	c := &cluster{}
	var servers []*kvserver.Server
	configs := make([]kvserver.Config, size)
	var founders []string
	for i := range configs {
		config := kvserver.Default()
		config.Name, config.DataDir = fmt.Sprint("m", i), filepath.Join(t.TempDir(), "data")
		config.Logger, config.BcryptCost = slog.New(slog.DiscardHandler), bcrypt.MinCost
		client, peer := "http://"+loopback.Address(t), "http://"+loopback.Address(t)
		config.ListenClientURLs, config.AdvertiseClientURLs = []string{client}, []string{client}
		config.ListenPeerURLs, config.InitialAdvertisePeerURLs = []string{peer}, []string{peer}
		founders = append(founders, config.Name+"="+peer)
		c.endpoints = append(c.endpoints, client)
		configs[i] = config
	}
	for _, config := range configs {
		config.InitialCluster = strings.Join(founders, ",")
		server, err := kvserver.Start(config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := server.Close(); err != nil {
				t.Error(err)
			}
		})
		servers = append(servers, server)
	}
	for _, server := range servers {
		select {
		case <-server.Ready():
		case <-time.After(patience):
			t.Fatal("the cluster is not ready")
		}
	}
	return c
}

// client is connected to the members of these numbers, or to all.
func (c *cluster) client(t *testing.T, members ...int) *clientv3.Client {
	t.Helper()
	endpoints := c.endpoints
	if len(members) > 0 {
		endpoints = nil
		for _, i := range members {
			endpoints = append(endpoints, c.endpoints[i])
		}
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: patience, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, kv clientv3.KV, key, value string) {
	t.Helper()
	_, err := kv.Put(bounded(t), key, value)
	check(t, err)
}

// wantValue reads a key until it has the value; the empty value is that of a
// key that is not there.
func wantValue(t *testing.T, kv clientv3.KV, key, want string) {
	t.Helper()
	ctx, got := bounded(t), ""
	for {
		response, err := kv.Get(ctx, key)
		if err != nil {
			t.Fatalf("%s is %q, want %q: %v", key, got, want, err)
		}
		got = ""
		for _, each := range response.Kvs {
			got = string(each.Value)
		}
		if got == want {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s is %q, want %q", key, got, want)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// next is what comes next on a channel.
func next[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case got, ok := <-from:
		if !ok {
			t.Fatal("the channel is closed")
		}
		return got
	case <-time.After(patience):
		t.Fatal("nothing comes")
	}
	panic("unreachable")
}
