package discovery

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

func TestCheck(t *testing.T) {
	for name, test := range map[string]struct {
		initial string
		change  func(*Config)
		want    string
	}{
		"nobody":           {"", func(*Config) {}, ""},
		"the members":      {"a=http://h:1", func(*Config) {}, ""},
		"DNS":              {"", func(c *Config) { c.Domain = "d" }, ""},
		"DNS and members":  {"a=http://h:1", func(c *Config) { c.Domain = "d" }, `Choose one of "initial-cluster"`},
		"a service":        {"", func(c *Config) { c.Service.Endpoints, c.Service.Token = []string{"e"}, "t" }, ""},
		"without a token":  {"", func(c *Config) { c.Service.Endpoints = []string{"e"} }, "both --discovery-token and --discovery-endpoints must be set"},
		"a token alone":    {"", func(c *Config) { c.Service.Token = "t" }, "both --discovery-token and --discovery-endpoints must be set"},
		"an empty address": {"", func(c *Config) { c.Service.Endpoints, c.Service.Token = []string{"e", " "}, "t" }, "must not contain empty endpoints"},
	} {
		config := Default()
		test.change(&config)
		if err := config.Check(test.initial); (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
		if config.Wanted() != (config.Domain != "" || len(config.Service.Endpoints) > 0) {
			t.Errorf("%s: Wanted is wrong", name)
		}
	}
}

// answer is a name server of one zone, on loopback.
func answer(t *testing.T, services map[string][]dnsmessage.SRVResource) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	before := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
	t.Cleanup(func() {
		net.DefaultResolver = before
		_ = conn.Close()
	})
	go func() {
		packet := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(packet)
			if err != nil {
				return
			}
			var message dnsmessage.Message
			if message.Unpack(packet[:n]) != nil || len(message.Questions) != 1 {
				continue
			}
			question := message.Questions[0]
			head := dnsmessage.ResourceHeader{Name: question.Name, Type: question.Type, Class: question.Class, TTL: 1}
			message.Response, message.Additionals = true, nil
			switch question.Type {
			case dnsmessage.TypeSRV:
				for _, resource := range services[question.Name.String()] {
					message.Answers = append(message.Answers, dnsmessage.Resource{Header: head, Body: &resource})
				}
			case dnsmessage.TypeA:
				message.Answers = append(message.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}})
			}
			if len(message.Answers) == 0 && question.Type == dnsmessage.TypeSRV {
				message.RCode = dnsmessage.RCodeNameError
			}
			reply, err := message.Pack()
			if err != nil {
				continue
			}
			_, _ = conn.WriteTo(reply, from)
		}
	}()
}

func TestFoundersFromDNS(t *testing.T) {
	record := func(host string, port uint16) dnsmessage.SRVResource {
		return dnsmessage.SRVResource{Target: dnsmessage.MustNewName(host + "."), Port: port}
	}
	answer(t, map[string][]dnsmessage.SRVResource{
		"_etcd-server-ssl._tcp.example.test.":     {record("m0.example.test", 2380), record("m1.example.test", 2381)},
		"_etcd-server-blue._tcp.example.test.":    {record("m2.example.test", 2382)},
		"_etcd-server-ssl._tcp.elsewhere.test.":   {record("m3.elsewhere.test", 2380)},
		"_etcd-server-red-ssl._tcp.example.test.": {},
	})
	logger := slog.New(slog.DiscardHandler)
	own := []string{"https://m0.example.test:2380"}
	got, token, err := Config{Domain: "example.test"}.Founders(t.Context(), "a", own, "token", logger)
	if err != nil || token != "token" || !strings.Contains(got, "a=https://m0.example.test:2380") || !strings.Contains(got, "0=https://m1.example.test:2381") {
		t.Errorf("%s, token %s (%v)", got, token, err)
	}
	got, _, err = Config{Domain: "example.test", ServiceName: "blue"}.Founders(t.Context(), "a", []string{"http://m2.example.test:2382"}, "", logger)
	if err != nil || got != "a=http://m2.example.test:2382" {
		t.Errorf("%s (%v)", got, err)
	}
	if _, _, err := (Config{Domain: "elsewhere.test"}).Founders(t.Context(), "a", []string{"https://m0.example.test:2385"}, "", logger); err == nil || !strings.Contains(err.Error(), `cannot find local etcd member "a" in SRV records`) {
		t.Errorf("not among them: %v", err)
	}
	if _, _, err := (Config{Domain: "example.test", ServiceName: "red"}).Founders(t.Context(), "a", own, "", logger); err == nil || !strings.Contains(err.Error(), "--discovery-srv=example.test") {
		t.Errorf("no records: %v", err)
	}
}

// Who waits for others at a discovery service can be stopped.
func TestWaitingEnds(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	config := Default()
	config.Service.Endpoints, config.Service.Token = []string{silent.Addr().String()}, "t"
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := config.Founders(ctx, "a", []string{"http://127.0.0.1:1"}, "", slog.New(slog.DiscardHandler)); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
