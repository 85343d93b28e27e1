package main

import (
	"time"

	"go.etcd.io/etcd/pkg/v3/featuregate"
	"go.etcd.io/etcd/server/v3/features"
)

// row is one flag: a setting under etcd's name.
type row struct {
	name  string
	value flagValue // where it goes; what is there already is the default
	usage string
	// old are names from earlier versions of etcd, for the same setting.
	old []string
	// noEffect is why the flag changes nothing here. It is said in the log
	// when the flag is given.
	noEffect string
	// only is why nothing but the default is accepted: the flag asks for what
	// is not there, and to start in spite of it would deceive the operator.
	only string
}

type flagValue interface {
	String() string
	Set(string) error
}

// group is a heading of --help and the flags below it.
type group struct {
	title string
	rows  []row
}

// table is every flag of etcd 3.7 and of the versions before it, under etcd's
// headings, bound to o.
func (o *options) table() []group {
	return []group{
		{"Member", o.memberRows()},
		{"Clustering", o.clusteringRows()},
		{"Security", o.securityRows()},
		{"Auth", o.authRows()},
		{"Profiling and Monitoring", o.monitoringRows()},
		{"Logging", o.loggingRows()},
		{"Distributed tracing", tracingRows()},
		{"Features", o.featureRows()},
		{"Unsafe feature", o.unsafeRows()},
		{"Other", o.otherRows()},
		{"From earlier versions of etcd", o.formerRows()},
	}
}

const (
	oneStore      = "the log and the store manage their own files"
	bolt          = "the store is not bbolt"
	noV2Discovery = "v2 discovery services are gone; see --discovery-endpoints"
)

func (o *options) memberRows() []row {
	c := &o.config
	return []row{
		{name: "name", value: text{&c.Name}, usage: "Human-readable name of this member."},
		{name: "data-dir", value: text{&c.DataDir}, usage: "Data directory; ${name}.etcd when empty."},
		{name: "wal-dir", value: text{&c.WALDir}, usage: "Directory of the log of a new member, as on a disk of its own; in the data directory when empty."},
		{name: "snapshot-count", value: number[uint64]{&c.SnapshotCount}, usage: "Committed log entries after which the log is cut."},
		{name: "heartbeat-interval", value: millis(&c.HeartbeatInterval), usage: "Milliseconds between a leader's signs of life."},
		{name: "election-timeout", value: millis(&c.ElectionTimeout), usage: "Milliseconds without a sign of life before an election."},
		{name: "initial-election-tick-advance", value: boolean{&c.InitialElectionTickAdvance}, usage: "Elect without waiting for the election timeout when there is no leader to wait for: alone, or when a new cluster's members are all there."},
		{name: "listen-peer-urls", value: urls{&c.ListenPeerURLs}, usage: "URLs to listen on for other members."},
		{name: "listen-client-urls", value: urls{&c.ListenClientURLs}, usage: "URLs to listen on for clients."},
		{name: "listen-client-http-urls", value: urls{&c.ListenClientHTTPURLs}, usage: "URLs to listen on for HTTP clients only; HTTP then leaves --listen-client-urls."},
		{name: "max-snapshots", value: number[uint]{new(uint(5))}, usage: "Snapshot files to keep.", noEffect: oneStore},
		{name: "max-wals", value: number[uint]{new(uint(5))}, usage: "Log files to keep.", noEffect: oneStore},
		{name: "memory-mlock", old: []string{"experimental-memory-mlock"}, value: boolean{new(false)}, usage: "Lock the store's pages in memory.", noEffect: "the store is read through a cache of its own, not mapped into memory"},
		{name: "quota-backend-bytes", value: signed{&c.QuotaBackendBytes}, usage: "Bytes that the store may use before it takes no more writes; 0 is 2 GiB, below 0 there is no bound."},
		{name: "backend-bbolt-freelist-type", old: []string{"experimental-backend-bbolt-freelist-type"}, value: choice{new("map"), []string{"array", "map"}}, usage: "Kind of the freelist of bbolt.", noEffect: bolt},
		{name: "backend-batch-interval", value: span{new(time.Duration)}, usage: "Longest time before writes are committed to the store.", noEffect: "every batch of the log is one write to the store"},
		{name: "backend-batch-limit", value: number[int]{new(0)}, usage: "Most operations before writes are committed to the store.", noEffect: "every batch of the log is one write to the store"},
		{name: "max-txn-ops", value: number[int]{&c.MaxTxnOps}, usage: "Operations allowed in a transaction."},
		{name: "max-request-bytes", value: number[int]{&c.MaxRequestBytes}, usage: "Size of the largest request, in bytes."},
		{name: "max-concurrent-streams", value: number[uint32]{&c.MaxConcurrentStreams}, usage: "Requests under way on one client connection."},
		{name: "grpc-keepalive-min-time", value: span{&c.GRPCKeepAliveMinTime}, usage: "Shortest time that a client should leave between pings."},
		{name: "grpc-keepalive-interval", value: span{&c.GRPCKeepAliveInterval}, usage: "How often an idle connection is pinged; 0 is never."},
		{name: "grpc-keepalive-timeout", value: span{&c.GRPCKeepAliveTimeout}, usage: "How long a ping may stay without an answer before the connection is closed."},
		{name: "socket-reuse-port", value: boolean{&c.SocketReusePort}, usage: "Share the ports with other processes (SO_REUSEPORT)."},
		{name: "socket-reuse-address", value: boolean{new(false)}, usage: "Take ports that are in TIME_WAIT (SO_REUSEADDR).", noEffect: "Go's listeners always do"},
		{name: "enable-grpc-gateway", value: boolean{&c.EnableGRPCGateway}, usage: "Serve the API as JSON over HTTP."},
		{name: "raft-read-timeout", value: span{new(5 * time.Second)}, usage: "Longest wait for a read on a peer connection.", noEffect: "peer connections have timeouts that follow --election-timeout"},
		{name: "raft-write-timeout", value: span{new(5 * time.Second)}, usage: "Longest wait for a write on a peer connection.", noEffect: "peer connections have timeouts that follow --election-timeout"},
		{name: "feature-gates", value: o.featureGates(), usage: "Feature gates, as Name=true,Other=false. Of etcd's, InitialCorruptCheck and CompactHashCheck have an effect."},
	}
}

func (o *options) featureGates() gates {
	return gates{
		to: map[featuregate.Feature]*bool{
			features.InitialCorruptCheck: &o.config.InitialCorruptCheck,
			features.CompactHashCheck:    &o.config.CompactHashCheck,
		},
		ignore: func(name string) {
			o.note("feature gate %s is accepted but has no effect: what it is for is always so, or does not arise", name)
		},
	}
}

func (o *options) clusteringRows() []row {
	c := &o.config
	d := &c.Discovery.Service
	return []row{
		{name: "initial-advertise-peer-urls", value: urls{&c.InitialAdvertisePeerURLs}, usage: "This member's peer URLs as the others reach it."},
		{name: "initial-cluster", value: text{&c.InitialCluster}, usage: "Founding members: name=peer-url,... This member alone when empty."},
		{name: "initial-cluster-state", value: choice{&c.InitialClusterState, []string{"new", "existing"}}, usage: "new, or existing for a member that joins a running cluster. Without meaning once there is data."},
		{name: "initial-cluster-token", value: text{&c.InitialClusterToken}, usage: "Distinguishes clusters with the same members."},
		{name: "advertise-client-urls", value: urls{&c.AdvertiseClientURLs}, usage: "This member's client URLs as clients reach it."},
		{name: "restore-snapshot", value: text{&c.RestoreSnapshot}, usage: "Found the cluster from this file, a snapshot saved by etcdctl from etcd or musterd; the same on every member."},
		{name: "restore-id", value: text{&c.RestoreID}, usage: "With --restore-snapshot, any text that gives this restore a cluster ID of its own; the same on every member."},
		{name: "discovery-token", value: text{&d.Token}, usage: "Name of the new cluster at a discovery service, an etcd cluster that keeps its size and its members."},
		{name: "discovery-endpoints", value: words{to: &d.Endpoints, set: true}, usage: "Endpoints of that service."},
		{name: "discovery-dial-timeout", value: span{&d.DialTimeout}, usage: "Longest wait for a connection to the discovery service."},
		{name: "discovery-request-timeout", value: span{&d.RequestTimeout}, usage: "Longest wait for the discovery service's answer."},
		{name: "discovery-keepalive-time", value: span{&d.KeepAliveTime}, usage: "How often the connection to the discovery service is pinged."},
		{name: "discovery-keepalive-timeout", value: span{&d.KeepAliveTimeout}, usage: "How long such a ping may stay without an answer."},
		{name: "discovery-insecure-transport", value: boolean{&d.Secure.InsecureTransport}, usage: "Speak to the discovery service without TLS."},
		{name: "discovery-insecure-skip-tls-verify", value: boolean{&d.Secure.InsecureSkipVerify}, usage: "Trust any discovery service."},
		{name: "discovery-cert", value: text{&d.Secure.Cert}, usage: "Client certificate for the discovery service."},
		{name: "discovery-key", value: text{&d.Secure.Key}, usage: "Key of that certificate."},
		{name: "discovery-cacert", value: text{&d.Secure.Cacert}, usage: "CA bundle for the discovery service."},
		{name: "discovery-user", value: text{&d.Auth.Username}, usage: "User at the discovery service."},
		{name: "discovery-password", value: text{&d.Auth.Password}, usage: "Password of that user."},
		{name: "discovery-fallback", value: choice{new("exit"), []string{"exit", "proxy"}}, usage: "What to do when discovery fails.", noEffect: "without the members there is nothing to start"},
		{name: "discovery-srv", value: text{&c.Discovery.Domain}, usage: "DNS domain whose SRV records name the founding members."},
		{name: "discovery-srv-name", value: text{&c.Discovery.ServiceName}, usage: "Suffix of the service that is asked for there."},
		{name: "strict-reconfig-check", value: boolean{&c.StrictReconfigCheck}, usage: "Refuse changes of the members that could cost the quorum."},
		{name: "pre-vote", value: boolean{new(true)}, usage: "Ask for votes before an election, so that a member which comes back does not disturb.", noEffect: "elections always begin with a pre-vote"},
		{name: "auto-compaction-retention", value: text{&c.AutoCompactionRetention}, usage: "History to keep: hours or a duration (periodic), or revisions (revision). 0 compacts never."},
		{name: "auto-compaction-mode", value: choice{&c.AutoCompactionMode, []string{"periodic", "revision"}}, usage: "What --auto-compaction-retention counts: periodic (time) or revision."},
		{name: "v2-deprecation", value: choice{new("write-only-drop-data"), []string{"not-yet", "write-only", "write-only-skip-check", "write-only-drop-data", "gone"}}, usage: "Stage at which the v2 store is.", noEffect: "whether version 2 is served is said by --enable-v2"},
	}
}

func (o *options) securityRows() []row {
	client, peer := &o.config.ClientTLS, &o.config.PeerTLS
	tlsVersions := []string{"", "TLS1.2", "TLS1.3"}
	return []row{
		{name: "cert-file", value: text{&client.Cert}, usage: "Certificate of the client port."},
		{name: "key-file", value: text{&client.Key}, usage: "Key of that certificate."},
		{name: "client-cert-auth", value: boolean{&client.RequireClientCert}, usage: "Require clients to show a certificate of the trusted CA."},
		{name: "client-cert-file", value: text{new("")}, usage: "Certificate with which the member calls its own client port; --cert-file when empty.", noEffect: "the member does not call its client port"},
		{name: "client-key-file", value: text{new("")}, usage: "Key of that certificate.", noEffect: "the member does not call its client port"},
		{name: "client-crl-file", value: text{&client.CRL}, usage: "Revocation list for the certificates of clients."},
		{name: "client-cert-allowed-hostname", value: words{to: &client.AllowedHostnames}, usage: "Hostnames, one of which a client's certificate must be for."},
		{name: "trusted-ca-file", value: text{&client.CA}, usage: "CA bundle for the certificates of clients, who must have one then."},
		{name: "auto-tls", value: boolean{&client.Auto}, usage: "Make a certificate for the client port where none is given."},
		{name: "peer-cert-file", value: text{&peer.Cert}, usage: "Certificate of the peer port."},
		{name: "peer-key-file", value: text{&peer.Key}, usage: "Key of that certificate."},
		{name: "peer-client-cert-auth", value: boolean{&peer.RequireClientCert}, usage: "Require other members to show a certificate of the trusted CA."},
		{name: "peer-client-cert-file", value: text{&peer.ClientCert}, usage: "Certificate with which the member calls others; --peer-cert-file when empty."},
		{name: "peer-client-key-file", value: text{&peer.ClientKey}, usage: "Key of that certificate."},
		{name: "peer-trusted-ca-file", value: text{&peer.CA}, usage: "CA bundle for the certificates of members, who must have one then."},
		{name: "peer-cert-allowed-cn", value: words{to: &peer.AllowedCNs}, usage: "Common names, one of which a member's certificate must have."},
		{name: "peer-cert-allowed-hostname", value: words{to: &peer.AllowedHostnames}, usage: "Hostnames, one of which a member's certificate must be for."},
		{name: "peer-auto-tls", value: boolean{&peer.Auto}, usage: "Make a certificate for the peer port where none is given."},
		{name: "self-signed-cert-validity", value: number[uint]{&o.config.SelfSignedCertValidity}, usage: "Years for which made certificates are valid."},
		{name: "peer-crl-file", value: text{&peer.CRL}, usage: "Revocation list for the certificates of members."},
		{name: "peer-skip-client-san-verification", old: []string{"experimental-peer-skip-client-san-verification"}, value: boolean{&peer.SkipAddressCheck}, usage: "Admit members whose certificate is not for the address that they call from."},
		{name: "cipher-suites", value: words{to: &o.config.CipherSuites}, usage: "Cipher suites of TLS 1.2; Go's when empty."},
		{name: "cors", value: words{to: &o.config.CORS, set: true}, usage: "Origins of web pages that may call this member; empty or * is all."},
		{name: "host-whitelist", value: words{to: &o.config.HostWhitelist, set: true}, usage: "Host names by which clients without TLS may call this member; empty or * is all."},
		{name: "tls-min-version", value: choice{&o.config.TLSMinVersion, tlsVersions}, usage: "Oldest version of TLS: TLS1.2 or TLS1.3."},
		{name: "tls-max-version", value: choice{&o.config.TLSMaxVersion, tlsVersions}, usage: "Newest version of TLS: TLS1.2 or TLS1.3; Go's when empty."},
	}
}

func (o *options) authRows() []row {
	c := &o.config
	return []row{
		{name: "auth-token", value: text{&c.AuthToken}, usage: "Kind of the tokens of users: simple, or jwt,sign-method=RS256,pub-key=FILE,priv-key=FILE,ttl=10m."},
		{name: "bcrypt-cost", value: number[int]{&c.BcryptCost}, usage: "Strength of the hashes of passwords, 4 to 31."},
		{name: "auth-token-ttl", value: nonzero{seconds(&c.AuthTokenTTL)}, usage: "Seconds for which a simple token is good without being used."},
	}
}

func (o *options) monitoringRows() []row {
	return []row{
		{name: "enable-pprof", value: boolean{&o.config.EnablePprof}, usage: "Serve profiles at /debug/pprof/ of the client port."},
		{name: "metrics", value: metricsLevel{&o.config.ExtensiveMetrics}, usage: "basic, or extensive, which adds histograms of how long requests take."},
		{name: "listen-metrics-urls", value: urls{&o.config.ListenMetricsURLs}, usage: "URLs that serve health and metrics only; https ones with the client port's certificate."},
	}
}

func (o *options) loggingRows() []row {
	return []row{
		{name: "logger", value: choice{new("zap"), []string{"zap"}}, usage: "Logging library.", noEffect: "the log goes through Go's slog"},
		{name: "log-outputs", old: []string{"log-output"}, value: words{to: &o.log.outputs, set: true}, usage: "Where the log goes: stderr (the default), stdout, systemd/journal or paths of files."},
		{name: "log-level", value: lower{choice{&o.log.level, []string{"debug", "info", "warn", "error", "panic", "fatal"}}}, usage: "Least weight of what is logged: debug, info, warn, error, panic or fatal."},
		{name: "log-format", value: choice{&o.log.format, []string{"json", "console"}}, usage: "Form of a line of the log: json or console."},
		{name: "enable-log-rotation", value: boolean{&o.log.rotate}, usage: "Rotate the log file."},
		{name: "log-rotation-config-json", value: text{&o.log.rotation}, usage: "How the log file is rotated: maxsize in megabytes, maxage in days (0 is for ever), maxbackups (0 is all), localtime, compress."},
		{name: "warning-unary-request-duration", old: []string{"experimental-warning-unary-request-duration"}, value: span{&o.config.WarningUnaryRequestDuration}, usage: "Requests that take longer are logged."},
	}
}

func tracingRows() []row {
	const none = "traces are not sent"
	return []row{
		{name: "enable-distributed-tracing", old: []string{"experimental-enable-distributed-tracing"}, value: boolean{new(false)}, usage: "Send traces to an OpenTelemetry collector.", noEffect: none},
		{name: "distributed-tracing-address", old: []string{"experimental-distributed-tracing-address"}, value: text{new("localhost:4317")}, usage: "Address of the collector.", noEffect: none},
		{name: "distributed-tracing-service-name", old: []string{"experimental-distributed-tracing-service-name"}, value: text{new("etcd")}, usage: "Name of the cluster in traces.", noEffect: none},
		{name: "distributed-tracing-instance-id", old: []string{"experimental-distributed-tracing-instance-id"}, value: text{new("")}, usage: "Name of this member in traces.", noEffect: none},
		{name: "distributed-tracing-sampling-rate", old: []string{"experimental-distributed-tracing-sampling-rate"}, value: number[int]{new(0)}, usage: "Spans out of a million that are sent.", noEffect: none},
	}
}

func (o *options) featureRows() []row {
	c := &o.config
	return []row{
		{name: "corrupt-check-time", old: []string{"experimental-corrupt-check-time"}, value: span{&c.CorruptCheckTime}, usage: "How often the members compare their data; 0 is never."},
		{name: "compact-hash-check-time", old: []string{"experimental-compact-hash-check-time"}, value: span{&c.CompactHashCheckTime}, usage: "How often the leader compares the hashes of compactions."},
		{name: "compaction-batch-limit", old: []string{"experimental-compaction-batch-limit"}, value: number[int]{new(1000)}, usage: "Most revisions removed by one step of a compaction.", noEffect: "old revisions are removed behind the traffic, in small steps"},
		{name: "watch-progress-notify-interval", old: []string{"experimental-watch-progress-notify-interval"}, value: span{&c.WatchProgressNotifyInterval}, usage: "How often an idle watch tells its progress."},
		{name: "warning-apply-duration", old: []string{"experimental-warning-apply-duration"}, value: span{&c.WarningApplyDuration}, usage: "Batches of requests that take longer to apply are logged."},
		{name: "bootstrap-defrag-threshold-megabytes", old: []string{"experimental-bootstrap-defrag-threshold-megabytes"}, value: number[uint]{new(uint(0))}, usage: "Defragment at start when this many megabytes become free.", noEffect: "the store returns space by itself"},
		{name: "max-learners", old: []string{"experimental-max-learners"}, value: number[int]{&c.MaxLearners}, usage: "Most learners that the cluster may have."},
		{name: "compaction-sleep-interval", old: []string{"experimental-compaction-sleep-interval"}, value: span{new(10 * time.Millisecond)}, usage: "Pause between the steps of a compaction.", noEffect: "old revisions are removed behind the traffic, in small steps"},
		{name: "downgrade-check-time", old: []string{"experimental-downgrade-check-time"}, value: span{new(5 * time.Second)}, usage: "How often a downgrade under way is looked at.", noEffect: "there is one version to serve"},
		{name: "snapshot-catchup-entries", old: []string{"experimental-snapshot-catchup-entries", "experimental-snapshot-catch-up-entries"}, value: number[uint64]{&c.SnapshotCatchUpEntries}, usage: "Entries kept for slow followers when the log is cut."},
	}
}

func (o *options) unsafeRows() []row {
	return []row{
		{name: "force-new-cluster", value: boolean{&o.config.ForceNewCluster}, usage: "Make this member's data a new cluster of one."},
		{name: "unsafe-no-fsync", value: boolean{new(false)}, usage: "Do not flush writes to the disk.", noEffect: "every acknowledged write is on the disk"},
	}
}

func (o *options) otherRows() []row {
	return []row{
		{name: "config-file", value: text{&o.configFile}, usage: "File with the settings, in etcd's format."},
		{name: "version", value: boolean{&o.version}, usage: "Print the version and exit."},
	}
}

// formerRows are flags that etcd 3.7 no longer has, and that are still found in
// manifests.
func (o *options) formerRows() []row {
	const (
		noV2V3  = "version 2 has keys of its own; see --enable-v2"
		noProxy = "musterd is not a proxy"
		gone    = "etcd no longer has it"
	)
	gate := func(name string, value bool, usage, noEffect string) row {
		return row{name: name, value: boolean{new(value)}, usage: usage, noEffect: noEffect}
	}
	rows := []row{
		{name: "experimental-initial-corrupt-check", value: boolean{&o.config.InitialCorruptCheck}, usage: "The feature gate InitialCorruptCheck."},
		{name: "experimental-compact-hash-check-enabled", value: boolean{&o.config.CompactHashCheck}, usage: "The feature gate CompactHashCheck."},
		gate("experimental-enable-lease-checkpoint", false, "The feature gate LeaseCheckpoint.", "the remaining time of leases is always kept"),
		gate("experimental-enable-lease-checkpoint-persist", false, "The feature gate LeaseCheckpointPersist.", "the remaining time of leases is always kept"),
		gate("experimental-stop-grpc-service-on-defrag", false, "The feature gate StopGRPCServiceOnDefrag.", "requests are served during a defragmentation"),
		gate("experimental-txn-mode-write-with-shared-buffer", true, "The feature gate TxnModeWriteWithSharedBuffer.", bolt),
		gate("experimental-set-member-localaddr", false, "The feature gate SetMemberLocalAddr.", "the system chooses the local address of connections"),
		{name: "experimental-wait-cluster-ready-timeout", value: span{new(5 * time.Second)}, usage: "Longest wait for the cluster at start.", noEffect: "a member is ready when it has joined, however long that takes"},
		{name: "enable-v2", value: boolean{&o.config.EnableV2}, usage: "Serve the v2 API."},
		{name: "experimental-enable-v2v3", value: text{new("")}, usage: "Serve the v2 API from below this prefix.", noEffect: noV2V3},
		{name: "discovery", value: text{new("")}, usage: "URL of a v2 discovery service.", only: noV2Discovery},
		{name: "discovery-proxy", value: text{new("")}, usage: "HTTP proxy towards the v2 discovery service.", noEffect: noV2Discovery},
		{name: "proxy", value: choice{new("off"), []string{"off", "readonly", "on"}}, usage: "Be a proxy of the v2 API.", only: noProxy},
		{name: "debug", value: debugLevel{&o.log.level}, usage: "The same as --log-level=debug."},
		{name: "log-package-levels", value: text{new("")}, usage: "Log levels of etcd's packages.", noEffect: "there is one level, --log-level"},
		{name: "ca-file", value: text{new("")}, usage: "CA bundle for the certificates of clients.", only: "etcd calls it --trusted-ca-file"},
		{name: "peer-ca-file", value: text{new("")}, usage: "CA bundle for the certificates of members.", only: "etcd calls it --peer-trusted-ca-file"},
	}
	for _, name := range []string{"failure-wait", "refresh-interval", "dial-timeout", "write-timeout", "read-timeout"} {
		rows = append(rows, row{name: "proxy-" + name, value: number[uint]{new(uint(0))}, usage: "A setting of the proxy.", noEffect: noProxy})
	}
	for _, name := range []string{
		"cluster-active-size", "cluster-remove-delay", "cluster-sync-interval", "config", "force", "max-result-buffer", "max-retry-attempts",
		"peer-heartbeat-interval", "peer-election-timeout", "retry-interval", "snapshot", "v", "vv", "test.coverprofile", "test.outputdir",
	} {
		rows = append(rows, row{name: name, value: unread{}, usage: "A setting of etcd 0.4.", noEffect: gone})
	}
	return rows
}
