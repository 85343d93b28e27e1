package v2api_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"muster/kvserver"
	"muster/kvserver/etcd34"
	"muster/kvserver/internal/loopback"
	"muster/kvserver/machine"
)

// script compares answers to requests, one in a line: method, path, what is in
// the body after a space, and name:password after @. A number in front is the
// code of the error that must be in the answer.
func (p pair) script(t *testing.T, lines string) {
	t.Helper()
	for _, line := range strings.Split(strings.TrimSpace(lines), "\n") {
		line = strings.TrimSpace(line)
		var r request
		code := ""
		text, login, _ := strings.Cut(line, " @")
		if line[0] <= '9' {
			code, text, _ = strings.Cut(text, " ")
		}
		r.login = login
		r.method, text, _ = strings.Cut(text, " ")
		r.path, r.form, _ = strings.Cut(text, " ")
		r.path = "/v2/" + r.path
		if _, body := p.compare(t, r); code != "" && !strings.Contains(body, fmt.Sprintf(`{"errorCode":%s,`, code)) {
			t.Errorf("%s: the answer has another code: %s", line, body)
		}
	}
}

// TestEveryCode has every error of keys that a client can bring about but for
// 300, 400 and 401; see below for those.
func TestEveryCode(t *testing.T) {
	t.Parallel()
	p := startPair(t)
	p.script(t, `
		100 GET keys/none
		100 GET keys/none/below?recursive=true
		100 DELETE keys/none
		PUT keys/a value=x
		101 PUT keys/a value=y&prevValue=z
		101 PUT keys/a value=y&prevIndex=99
		101 PUT keys/a value=y&prevIndex=99&prevValue=z
		101 DELETE keys/a?prevValue=z
		101 DELETE keys/a?prevIndex=1&prevValue=x
		PUT keys/d dir=true
		102 PUT keys/d value=x
		102 PUT keys/d value=x&prevExist=true
		102 PUT keys/d value=x&prevValue=x
		102 DELETE keys/d
		102 DELETE keys/d?prevIndex=5
		104 PUT keys/a/b value=x
		104 GET keys/a/b
		104 POST keys/a value=x
		105 PUT keys/a value=x&prevExist=false
		105 PUT keys/d dir=true&prevExist=false
		107 PUT keys/ value=x
		107 PUT keys dir=true
		107 PUT keys value=x&prevExist=true
		107 PUT keys value=x&prevValue=x
		107 DELETE keys/?recursive=true
		PUT keys/d/c value=x
		108 DELETE keys/d?dir=true
		201 PUT keys/a value=x&prevValue=
		202 PUT keys/a value=x&ttl=abc
		202 PUT keys/a value=x&ttl=-1
		203 PUT keys/a value=x&prevIndex=abc
		203 GET keys/a?wait=true&waitIndex=-1
		209 GET keys/a?recursive=maybe
		209 GET keys/a?sorted=maybe
		209 GET keys/a?wait=maybe
		209 GET keys/a?dir=maybe
		209 GET keys/a?quorum=maybe
		209 GET keys/a?stream=maybe
		209 PUT keys/a wait=true
		209 PUT keys/a noValueOnSuccess=maybe
		209 PUT keys/a prevExist=maybe
		209 PUT keys/a refresh=maybe
		210 PUT keys/a %zz
		210 GET keys/a?a=%zz
		211 PUT keys/a refresh=true&value=x&ttl=5
		212 PUT keys/a refresh=true
		GET keys/a?quorum=true
		GET keys/a?quorum=true&wait=true
		HEAD keys/d
		PUT keys/a value=x&noValueOnSuccess=true
		PUT keys/a value=z&prevValue=x&noValueOnSuccess=true
		POST keys/q value=1
		POST keys/q value=2
		GET keys/q?sorted=true
		PUT keys/d dir=true&ttl=100&prevExist=true
		GET keys/d
		PUT keys/_hidden value=x
		PUT keys/d/_h/x value=x
		GET keys/?recursive=true&sorted=true
		GET keys/d/_h
		PATCH keys/a
		OPTIONS keys/a
		GET keys/%2e%2e/2/users
		PUT keys/a/..%2f..%2f../2/enabled value=true
		GET keys/a%2fb
		GET keys/%61
		GET other
	`)
	if diff := cmp.Diff(counted(t, p.etcd), counted(t, p.ours)); diff != "" {
		t.Errorf("counted (-etcd +musterd)\n%s", diff)
	}
}

// counted are the metrics of version 2 but for how long things took, and for
// reads, with which it was asked whether etcd is ready.
func counted(t *testing.T, endpoint string) (lines []string) {
	t.Helper()
	_, _, body := request{method: "GET", path: "/metrics"}.ask(t, endpoint)
	for _, line := range strings.Split(body, "\n") {
		if strings.HasPrefix(line, "etcd_http_") && !strings.HasSuffix(strings.Fields(line)[0], `method="GET"}`) && !strings.Contains(line, "_seconds_bucket") && !strings.Contains(line, "_seconds_sum") {
			lines = append(lines, line)
		}
	}
	return lines
}

// TestWatch compares what is told to those who wait for one event.
func TestWatch(t *testing.T) {
	t.Parallel()
	p := startPair(t)
	both := func(query string) [2]*stream { return [2]*stream{watch(t, p.etcd+query), watch(t, p.ours+query)} }
	told := func(w [2]*stream, last string) {
		t.Helper()
		if diff := cmp.Diff(w[0].until(t, last), w[1].until(t, last)); diff != "" {
			t.Errorf("(-etcd +musterd)\n%s", diff)
		}
	}
	one := both("/v2/keys/a?wait=true")
	below := both("/v2/keys/?wait=true&recursive=true&stream=true")
	deep := both("/v2/keys/d/e/f?wait=true")
	p.script(t, `
		PUT keys/_hidden value=unseen
		PUT keys/a value=x
		PUT keys/a value=y
		PUT keys/d/e/f value=x`)
	told(one, `"value":"x"`)
	told(deep, `"value":"x"`)
	deep = both("/v2/keys/d/e/f?wait=true")
	p.script(t, `DELETE keys/d?recursive=true`)
	told(deep, "delete")
	p.script(t, `PUT keys/t value=short&ttl=1`)
	told(below, "expire")
	told(both("/v2/keys/a?wait=true&waitIndex=1"), "set")
	told(both("/v2/keys/?wait=true&recursive=true&waitIndex=6"), "set")
	// The store has forgotten what was a thousand changes ago.
	for range 1000 {
		p.script(t, `PUT keys/a value=z`)
	}
	p.script(t, `
		401 GET keys/a?wait=true&waitIndex=1
		GET stats/store/
		DELETE stats/store`)
	told(both("/v2/keys/a?wait=true&waitIndex=900"), "set")
	fields := func(endpoint string) map[string]any {
		_, _, body := request{method: "GET", path: "/v2/stats/store"}.ask(t, endpoint)
		var stats map[string]any
		if err := json.Unmarshal([]byte(body), &stats); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"getsSuccess", "getsFail", "setsSuccess", "createSuccess"} {
			stats[name] = "some" // etcd's own are among them
		}
		return stats
	}
	if diff := cmp.Diff(fields(p.etcd), fields(p.ours)); diff != "" {
		t.Errorf("stats (-etcd +musterd)\n%s", diff)
	}
}

// TestUsers compares users, roles and what they may do.
func TestUsers(t *testing.T) {
	t.Parallel()
	p := startPair(t)
	p.script(t, `
		GET auth/enable
		PUT auth/enable
		DELETE auth/enable
		GET auth/users
		GET auth/users/
		GET auth/users/ann
		GET auth/users/ann/x
		DELETE auth/users/ann
		PUT auth/users/ann {"user":"ann"}
		PUT auth/users/ann {"user":"bob","password":"x"}
		PUT auth/users/ann {"user":
		PUT auth/users/ann {"user":"ann","password":"a"}
		PUT auth/users/ann {"user":"ann","password":"b"}
		PUT auth/users/ann {"user":"ann"}
		PUT auth/users/ann {"user":"ann","password":"b","roles":["x"]}
		PUT auth/users/ann {"user":"ann","roles":["x"],"grant":["y"]}
		PUT auth/users/bob {"user":"bob","password":"b","roles":["x","guest"]}
		PUT auth/users/ann {"user":"ann","grant":["reader","writer"]}
		PUT auth/users/ann {"user":"ann","grant":["reader"]}
		PUT auth/users/ann {"user":"ann","revoke":["nothing"]}
		PUT auth/users/ann {"user":"ann","revoke":["writer"]}
		PUT auth/users/none {"user":"none","revoke":["writer"]}
		GET auth/users/ann
		GET auth/users
		GET auth/roles
		GET auth/roles/reader
		GET auth/roles/root
		DELETE auth/roles/root
		DELETE auth/roles/none
		PUT auth/roles/root {"role":"root"}
		PUT auth/roles/reader {"role":"other"}
		PUT auth/roles/reader {
		PUT auth/roles/reader {"role":"reader","permissions":{"kv":{"read":["/pub/*","/one"],"write":[]}}}
		PUT auth/roles/reader {"role":"reader"}
		PUT auth/roles/reader {"role":"reader","grant":{"kv":{"read":["/more"],"write":["/w"]}}}
		PUT auth/roles/reader {"role":"reader","grant":{"kv":{"read":["/more"]}}}
		PUT auth/roles/reader {"role":"reader","revoke":{"kv":{"write":["/w","/none"]}}}
		PUT auth/roles/reader {"role":"reader","revoke":{"kv":{"write":["/none"]}}}
		PUT auth/roles/reader {"role":"reader","permissions":{"kv":{"read":["/x"]}},"grant":{"kv":{"read":["/more"]}}}
		PUT auth/roles/none {"role":"none","grant":{"kv":{"read":["/more"]}}}
		GET auth/roles/reader
		GET auth/roles
		GET auth/users/ann
		GET auth/users/bob
		PUT auth/users/root {"user":"root","password":"r"}
		GET auth/users/root
		PUT keys/pub/a value=x
		PUT keys/one value=x
		PUT keys/secret value=x
		PUT auth/enable
		PUT auth/enable
		PUT auth/enable @root:r
		GET auth/enable
		GET keys/secret
		GET keys/secret @ann:b
		GET keys/secret @ann:wrong
		GET keys/secret @nobody:b
		PUT auth/roles/guest {"role":"guest","revoke":{"kv":{"read":["/*"],"write":["/*"]}}} @root:r
		110 GET keys/secret
		110 GET keys/secret @ann:b
		110 PUT keys/pub/a value=y @ann:b
		GET keys/pub/a @ann:b
		GET keys/pub/?recursive=true @ann:b
		GET keys/one @ann:b
		110 GET keys/one?recursive=true @ann:b
		110 GET keys/?recursive=true @ann:b
		GET keys/secret @root:r
		GET auth/users
		GET auth/users @ann:b
		GET members
		POST members {"peerURLs":["http://127.0.0.1:1"]}
		DELETE members/1 @ann:b
		PUT members/1 {"peerURLs":["http://127.0.0.1:1"]} @root:r
		DELETE auth/users/root @root:r
		DELETE auth/roles/reader @root:r
		110 GET keys/pub/a @ann:b
		DELETE auth/enable
		DELETE auth/enable @root:r
		DELETE auth/users/ann
		POST auth/users
		POST auth/users/ann
		PATCH auth/enable`)
}

// TestMembers compares changes of the members of three.
func TestMembers(t *testing.T) {
	t.Parallel()
	var peers []string
	for range 3 {
		peers = append(peers, "http://"+loopback.Address(t))
	}
	p := pair{etcd34.Start(t, peers...)[0], startThree(t, nil)[0]}
	p.script(t, `
		GET members/none
		DELETE members
		DELETE members/nonsense
		DELETE members/1
		PUT members
		PUT members/1 {"peerURLs":["http://127.0.0.1:1"]}
		PUT members/1 value=x
		POST members value=x
		POST members {
		POST members {"peerURLs":[]}
		POST members {"peerURLs":["127.0.0.1:1"]}
		POST members {"peerURLs":["http://127.0.0.1"]}
		POST members {"peerURLs":["http://127.0.0.1:1/x"]}
		POST members {"peerURLs":["ftp://127.0.0.1:1"]}
		PATCH members
		POST machines`)
	for _, endpoint := range []string{p.etcd, p.ours} {
		if len(members(t, endpoint, "members")) != 3 || len(members(t, endpoint, "members/leader")) != 1 {
			t.Errorf("%s has other members", endpoint)
		}
		status, _, body := request{method: "GET", path: "/v2/machines"}.ask(t, endpoint)
		if status != http.StatusOK || len(strings.Split(body, ", ")) != 3 || !strings.Contains(body, endpoint) {
			t.Errorf("machines: %d, %s", status, body)
		}
	}
	// Added, changed, removed for good.
	var said [2][]string
	for i, endpoint := range []string{p.etcd, p.ours} {
		say := func(r request) string {
			r.path = "/v2/" + r.path
			status, header, body := r.ask(t, endpoint)
			// etcd has to be connected for a while first.
			for deadline := time.Now().Add(patience); status == http.StatusInternalServerError && time.Now().Before(deadline); {
				<-time.After(50 * time.Millisecond)
				status, header, body = r.ask(t, endpoint)
			}
			said[i] = append(said[i], r.describe(status, header, body))
			return body
		}
		taken := members(t, endpoint, "members")[0]["peerURLs"].([]any)[0]
		say(request{method: "POST", path: "members", form: fmt.Sprintf(`{"peerURLs":[%q]}`, taken)})
		say(request{method: "POST", path: "members", form: `{"peerURLs":["http://127.9.9.9:9"]}`})
		i := slices.IndexFunc(members(t, endpoint, "members"), func(m map[string]any) bool { return m["name"] == "" })
		if i < 0 {
			t.Fatalf("%s has no new member", endpoint)
		}
		id := fmt.Sprint(members(t, endpoint, "members")[i]["id"])
		say(request{method: "PUT", path: "members/" + id, form: fmt.Sprintf(`{"peerURLs":[%q]}`, taken)})
		say(request{method: "PUT", path: "members/" + id, form: `{"peerURLs":["http://127.9.9.9:8"]}`})
		say(request{method: "DELETE", path: "members/" + id})
		say(request{method: "DELETE", path: "members/" + id})
	}
	if diff := cmp.Diff(said[0], said[1]); diff != "" {
		t.Errorf("(-etcd +musterd)\n%s", diff)
	}
	p.compareStats(t)
}

// compareStats compares of what there are statistics.
func (p pair) compareStats(t *testing.T) {
	t.Helper()
	shape := func(endpoint string) (out []string) {
		status, _, body := request{method: "GET", path: "/v2/stats/self"}.ask(t, endpoint)
		var self map[string]any
		if err := json.Unmarshal([]byte(body), &self); err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		leading := self["state"] == "StateLeader"
		for _, name := range slices.Sorted(maps.Keys(self)) {
			if !strings.Contains(name, "Rate") { // those of the last moment
				out = append(out, fmt.Sprint(status, name))
			}
		}
		status, _, body = request{method: "GET", path: "/v2/stats/leader"}.ask(t, endpoint)
		if leading != (status == http.StatusOK) || !leading && body != `{"message":"not current leader"}` {
			t.Errorf("%s leads %v, and says %d %s", endpoint, leading, status, body)
		}
		return out
	}
	if diff := cmp.Diff(shape(p.etcd), shape(p.ours)); diff != "" {
		t.Errorf("(-etcd +musterd)\n%s", diff)
	}
}

// members lists members as a client does.
func members(t *testing.T, endpoint, path string) []map[string]any {
	t.Helper()
	_, _, body := request{method: "GET", path: "/v2/" + path}.ask(t, endpoint)
	var list struct{ Members []map[string]any }
	var one map[string]any
	if err := json.Unmarshal([]byte(body), &list); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	if err := json.Unmarshal([]byte(body), &one); err == nil && one["id"] != nil {
		return []map[string]any{one}
	}
	return list.Members
}

// startThree starts three members and returns their client URLs.
func startThree(t *testing.T, change func(i int, c *kvserver.Config)) (endpoints []string) {
	t.Helper()
	_, endpoints = launchThree(t, change)
	return endpoints
}

func launchThree(t *testing.T, change func(i int, c *kvserver.Config)) (servers []*kvserver.Server, endpoints []string) {
	t.Helper()
	var peers, founders []string
	for i := range 3 {
		peers = append(peers, "http://"+loopback.Address(t))
		founders = append(founders, fmt.Sprintf("m%d=%s", i, peers[i]))
	}
	for i := range peers {
		server, endpoint := launch(t, func(c *kvserver.Config) {
			c.Name, c.InitialCluster = fmt.Sprint("m", i), strings.Join(founders, ",")
			c.ListenPeerURLs, c.InitialAdvertisePeerURLs = peers[i:i+1], peers[i:i+1]
			if change != nil {
				change(i, c)
			}
		})
		servers, endpoints = append(servers, server), append(endpoints, endpoint)
	}
	for _, server := range servers {
		awaitReady(t, server)
		unknown := func(m machine.Member) bool { return len(m.ClientURLs) == 0 }
		for deadline := time.Now().Add(patience); slices.ContainsFunc(server.Replica().Machine().Members(), unknown); <-time.After(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("a member does not know where the others are")
			}
		}
	}
	return servers, endpoints
}
