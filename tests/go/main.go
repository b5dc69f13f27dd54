// Header-auth is a genuine go-plugin program for the tests: MOSN's filter sample, with a few habits that can be asked
// for by flags. go.mod builds it with the current go-plugin, v1.0.1.mod with the release that MOSN's SDK is made with.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
)

var (
	header   = flag.String("header", "User", "the header to look at")
	value    = flag.String("value", "admin", "what it must be")
	talk     = flag.Int("talk", 0, "KiB to print on stdout in each call, after the handshake")
	broker   = flag.Bool("broker", false, "announce a service of its own by the broker in each call")
	quiet    = flag.Bool("quiet", false, "say nothing in calls")
	sdk      = flag.Bool("sdk", false, "end with the parent process and where that is pid 1, as MOSN's SDK does")
	versions = flag.String("versions", "1", "application versions that it speaks")
)

func main() {
	flag.Parse()
	if *sdk {
		followParent()
	}
	// Made before Serve, so it keeps the real stderr; Serve replaces os.Stderr by a pipe to GRPCStdio.
	logger := hclog.New(&hclog.LoggerOptions{Name: "header-auth", Level: hclog.Trace, Output: os.Stderr, JSONFormat: true})
	served := map[int]plugin.PluginSet{}
	for _, text := range strings.Split(*versions, ",") {
		version, err := strconv.Atoi(text)
		if err != nil {
			panic(err)
		}
		served[version] = plugin.PluginSet{"filter": &filterPlugin{logger: logger, version: version}}
	}
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: plugin.HandshakeConfig{
			ProtocolVersion:  1,
			MagicCookieKey:   "MOSN_PLUGIN",
			MagicCookieValue: "ON",
		},
		VersionedPlugins: served,
		GRPCServer:       plugin.DefaultGRPCServer,
	})
}

// followParent does what MOSN's SDK does before it serves: it uses as many threads as it is told to, and it ends when
// its parent is pid 1, which it takes for a parent that has gone.
func followParent() {
	if procs, err := strconv.Atoi(os.Getenv("MOSN_PROCS")); err == nil {
		runtime.GOMAXPROCS(procs)
	}
	parent := os.Getppid()
	orphaned := func() bool { return parent == 1 || os.Getppid() != parent }
	if orphaned() {
		fmt.Println("parent process has gone")
		os.Exit(0)
	}
	go func() {
		for range time.Tick(5 * time.Second) {
			if orphaned() {
				os.Exit(0)
			}
		}
	}()
}

// filterPlugin hooks the service into go-plugin.
type filterPlugin struct {
	plugin.NetRPCUnsupportedPlugin
	logger  hclog.Logger
	version int
}

func (p *filterPlugin) GRPCServer(broker *plugin.GRPCBroker, server *grpc.Server) error {
	server.RegisterService(&service, &filter{logger: p.logger, version: p.version, broker: broker})
	return nil
}

func (p *filterPlugin) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (interface{}, error) {
	return nil, fmt.Errorf("this is a plugin, not a host")
}

type filter struct {
	logger  hclog.Logger
	version int
	broker  *plugin.GRPCBroker
}

// Call answers 0 to let a request pass and -1 to refuse it.
func (f *filter) Call(_ context.Context, request *Request) (*Response, error) {
	if *broker {
		// Blocks until the host takes announcements.
		listener, err := f.broker.Accept(f.broker.NextId())
		if err != nil {
			return nil, err
		}
		defer listener.Close()
	}
	for i := 0; i < *talk; i++ {
		fmt.Println(strings.Repeat("x", 1023))
	}
	user := request.Header[*header]
	if *quiet {
		if user != *value {
			return &Response{Status: -1}, nil
		}
		return &Response{}, nil
	}
	f.logger.Trace("asked", "version", f.version)
	if user != *value {
		fmt.Println("denied on stdout")
		f.logger.Warn("denied", "user", user)
		return &Response{Status: -1}, nil
	}
	fmt.Fprintln(os.Stderr, "[INFO] allowed on stderr")
	f.logger.Info("allowed", "user", user)
	return &Response{Header: map[string]string{"X-Plugin-Version": strconv.Itoa(f.version)}}, nil
}
